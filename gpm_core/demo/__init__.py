"""The library end to end on text, in half a minute: ``gpm-core demo``.

Cyclic preferences (:mod:`~gpm_core.demo.cycles`), cross-validated models of them
(:mod:`~gpm_core.demo.crossval`), a policy trained against such a model
(:mod:`~gpm_core.demo.policy`), and pictures of all three (:mod:`~gpm_core.demo.pictures`).
"""
