#include "gpm/preference_loss.h"

#include "cpu/dispatch.h"
#include "cpu/pairs.h"
#include "cpu/parallel.h"

namespace gpm::cpu {

GPM_KERNEL(preference_loss, PreferenceLoss)
GPM_KERNEL(preference_loss_backward, PreferenceLossBackward)

void preference_loss(const PreferenceLoss& args, int threads) {
  parallel_for(preference_loss_kernel(), args, args.rows, 10.0 + 3.0 * args.width, threads,
               pair_scratch(args.width, false));
}

void preference_loss_backward(const PreferenceLossBackward& args, int threads) {
  parallel_for(preference_loss_backward_kernel(), args, args.rows, 10.0 + 6.0 * args.width, threads,
               pair_scratch(args.width, true));
}

}  // namespace gpm::cpu
