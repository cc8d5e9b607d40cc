// CUDA's operations in place of the processor's. What is a number of threads there decides the
// order of threads here; results must not depend on either.
#pragma once

#include <stdexcept>
#include <vector>

#include "cuda_host/control.h"
#include "gpm/gpm.h"

namespace gpm::tested {

// The launch stops at the bad position, when other threads may have written already.
using BadPosition = std::runtime_error;
constexpr bool kChecksBeforeWriting = false;

template <class Args>
void launch(void (*op)(const Args&, cuda::Stream), const Args& args, int seed) {
  cuda::cuda_host::set_seed(static_cast<uint64_t>(seed));
  cuda::cuda_host::find_races(true);
  op(args, cuda::Stream{});
}

template <class Args>
void launch_with_workspace(void (*op)(const Args&, cuda::Stream), Args args, int seed) {
  const int64_t tiles = (args.rows + cuda::kGradientRows - 1) / cuda::kGradientRows;
  std::vector<double> workspace(static_cast<size_t>(args.batch * tiles * args.width / 2));
  if (args.grad_scale) args.workspace = workspace.data();
  launch(op, args, seed);
}

#define GPM_TESTED(name, Args) \
  inline void name(const Args& args, int seed) { launch(cuda::name, args, seed); }
#define GPM_TESTED_WITH_WORKSPACE(name, Args) \
  inline void name(const Args& args, int seed) { launch_with_workspace(cuda::name, args, seed); }

GPM_TESTED(normalize, Normalize)
GPM_TESTED(normalize_backward, NormalizeBackward)
GPM_TESTED(score, Score)
GPM_TESTED(score_backward, ScoreBackward)
GPM_TESTED(preference_loss, PreferenceLoss)
GPM_TESTED(preference_loss_backward, PreferenceLossBackward)
GPM_TESTED(preference_embedding, PreferenceEmbedding)
GPM_TESTED(linear_logprob, LinearLogprob)
GPM_TESTED(linear_logprob_backward, LinearLogprobBackward)
GPM_TESTED(score_matrix, ScoreMatrix)
GPM_TESTED(probability_matrix, ProbabilityMatrix)
GPM_TESTED(cross_score_matrix, CrossScoreMatrix)
GPM_TESTED(cross_probability_matrix, CrossProbabilityMatrix)
GPM_TESTED_WITH_WORKSPACE(score_matrix_backward, ScoreMatrixBackward)
GPM_TESTED_WITH_WORKSPACE(probability_matrix_backward, ProbabilityMatrixBackward)
GPM_TESTED_WITH_WORKSPACE(cross_score_matrix_backward, CrossScoreMatrixBackward)
GPM_TESTED_WITH_WORKSPACE(cross_probability_matrix_backward, CrossProbabilityMatrixBackward)

#undef GPM_TESTED
#undef GPM_TESTED_WITH_WORKSPACE

// CUDA needs no workspace here; the processor's tests look at the one they gave.
inline void preference_embedding_backward(PreferenceEmbeddingBackward args, int seed) {
  args.grad_projection = nullptr;
  launch(cuda::preference_embedding_backward, args, seed);
}

}  // namespace gpm::tested
