// The Python module gpm_core._C: pointers, sizes and strides in, nothing out but numbers in memory.
//
// Every operation is there twice: `_C.<op>(..., threads)` computes on the processor and
// `_C.cuda.<op>(..., device, stream)`, where CUDA kernels were built, launches one. No tensor is
// allocated and nothing is checked here; gpm_core/backends/native does both. The interpreter is
// free while kernels run.
#include <pybind11/pybind11.h>

#include <utility>

#include "gpm/gpm.h"

namespace py = pybind11;

#if defined(GPM_CUDA_HOST)
#define GPM_MODULE gpm_cuda_host
// What tests ask of the stand-in for a GPU that this module computes on.
void define_cuda_host(py::module_& m);
#else
#define GPM_MODULE _C
#endif

#if defined(GPM_HAVE_CUDA)
#define GPM_DEFINE(m, op, make) define(m, #op, make, gpm::cpu::op, gpm::cuda::op)
#else
#define GPM_DEFINE(m, op, make) define(m, #op, make, gpm::cpu::op)
#endif

namespace {

using Address = uintptr_t;
using Size = int64_t;

const void* in(Address address) { return reinterpret_cast<const void*>(address); }
void* out(Address address) { return reinterpret_cast<void*>(address); }
const Size* indices(Address address) { return reinterpret_cast<const Size*>(address); }
gpm::DType dtype(int code) { return static_cast<gpm::DType>(code); }

using Free = py::call_guard<py::gil_scoped_release>;

// m.def of an operation whose arguments are those of `make`, then threads.
template <class Args, class... A>
void define(py::module_& m, const char* name, Args (*make)(A...), void (*run)(const Args&, int)) {
  m.def(name, [make, run](A... a, int threads) { run(make(a...), threads); }, Free());
}

// And of its launch, whose arguments end with device and stream.
template <class Args, class... A>
void define(py::module_& m, const char* name, Args (*make)(A...), void (*run)(const Args&, int),
            void (*launch)(const Args&, gpm::cuda::Stream)) {
  define(m, name, make, run);
  m.attr("cuda").cast<py::module_>().def(
      name,
      [make, launch](A... a, int device, Address stream) {
        launch(make(a...), gpm::cuda::Stream{device, out(stream)});
      },
      Free());
}

// The arguments of `make`, then tau.
template <class WithTau, class Made, class... A>
struct Tau {
  template <Made (*make)(A...)>
  static WithTau args(A... a, double tau) {
    return {make(a...), tau};
  }
};

gpm::Normalize normalize(int t, Size rows, Size width, double eps, Address x, Size x_stride,
                         Address result) {
  return {dtype(t), rows, width, eps, {in(x), x_stride}, out(result)};
}

gpm::NormalizeBackward normalize_backward(int t, Size rows, Size width, double eps, Address grad,
                                          Size grad_stride, Address x, Size x_stride,
                                          Address result) {
  return {dtype(t), rows, width, eps, {in(grad), grad_stride}, {in(x), x_stride}, out(result)};
}

gpm::Score score(int t, Size rows, Size width, Address a, Size a_stride, Address b, Size b_stride,
                 Address scale, Size scale_stride, Address result) {
  return {dtype(t),   rows, width, {in(a), a_stride}, {in(b), b_stride}, {in(scale), scale_stride},
          out(result)};
}

gpm::ScoreBackward score_backward(int t, Size rows, Size width, Address grad, Address a,
                                  Size a_stride, Address b, Size b_stride, Address scale,
                                  Size scale_stride, Address grad_a, Address grad_b,
                                  Address grad_scale) {
  return {dtype(t),
          rows,
          width,
          in(grad),
          {in(a), a_stride},
          {in(b), b_stride},
          {in(scale), scale_stride},
          out(grad_a),
          out(grad_b),
          out(grad_scale)};
}

gpm::PreferenceLoss preference_loss(int t, Size rows, Size width, double tau, Address chosen,
                                    Size chosen_stride, Address rejected, Size rejected_stride,
                                    Address scale, Size scale_stride, Address margin,
                                    Size margin_stride, Address target, Size target_stride,
                                    Address loss, Address probability) {
  return {dtype(t),
          rows,
          width,
          tau,
          {in(chosen), chosen_stride},
          {in(rejected), rejected_stride},
          {in(scale), scale_stride},
          {in(margin), margin_stride},
          {in(target), target_stride},
          out(loss),
          out(probability)};
}

gpm::PreferenceLossBackward preference_loss_backward(
    int t, Size rows, Size width, double tau, Address grad_loss, Address grad_probability,
    Address chosen, Size chosen_stride, Address rejected, Size rejected_stride, Address scale,
    Size scale_stride, Address margin, Size margin_stride, Address target, Size target_stride,
    Address grad_chosen, Address grad_rejected, Address grad_scale, Address grad_margin,
    Address grad_target) {
  return {dtype(t),
          rows,
          width,
          tau,
          in(grad_loss),
          in(grad_probability),
          {in(chosen), chosen_stride},
          {in(rejected), rejected_stride},
          {in(scale), scale_stride},
          {in(margin), margin_stride},
          {in(target), target_stride},
          out(grad_chosen),
          out(grad_rejected),
          out(grad_scale),
          out(grad_margin),
          out(grad_target)};
}

gpm::PreferenceEmbedding preference_embedding(int t, Size rows, Size length, Size size, Size width,
                                              bool normalized, double eps, Address hidden,
                                              Size batch_stride, Size row_stride, Address positions,
                                              Address weight, Size weight_stride, Address bias,
                                              Address result, Address projection) {
  return {dtype(t),
          rows,
          length,
          size,
          width,
          normalized,
          eps,
          {in(hidden), batch_stride, row_stride},
          indices(positions),
          {in(weight), weight_stride},
          in(bias),
          out(result),
          out(projection)};
}

gpm::PreferenceEmbeddingBackward preference_embedding_backward(
    int t, Size rows, Size length, Size size, Size width, bool normalized, double eps, Address grad,
    Size grad_stride, Address hidden, Size batch_stride, Size row_stride, Address positions,
    Address weight, Size weight_stride, Address projection, Address grad_projection,
    Address grad_hidden, Address grad_weight, Address grad_bias) {
  return {dtype(t),
          rows,
          length,
          size,
          width,
          normalized,
          eps,
          {in(grad), grad_stride},
          {in(hidden), batch_stride, row_stride},
          indices(positions),
          {in(weight), weight_stride},
          in(projection),
          out(grad_projection),
          out(grad_hidden),
          out(grad_weight),
          out(grad_bias)};
}

gpm::LinearLogprob linear_logprob(int t, Size rows, Size columns, Size first, Size size,
                                  double temperature, double softcap, bool entropy, Address logits,
                                  Address target, Address bias, Address state, Address coefficients,
                                  Address pulled) {
  return {dtype(t),    rows,       columns,           first,       size,
          temperature, softcap,    entropy,           out(logits), indices(target),
          in(bias),    out(state), out(coefficients), out(pulled)};
}

gpm::LinearLogprobBackward linear_logprob_backward(int t, Size rows, Size columns, Size first,
                                                   double temperature, double softcap, bool entropy,
                                                   Address logits, Address target, Address bias,
                                                   Address gradients, Address coefficients) {
  return {dtype(t), rows,        columns,         first,    temperature,   softcap,
          entropy,  out(logits), indices(target), in(bias), in(gradients), out(coefficients)};
}

gpm::ScoreMatrix square(int t, Size batch, Size rows, Size width, Address v, Size batch_stride,
                        Size row_stride, Address scale, Size scale_stride, Address result,
                        Size out_batch_stride, Size out_row_stride) {
  return {dtype(t),
          batch,
          rows,
          width,
          {in(v), batch_stride, row_stride},
          {in(scale), scale_stride},
          out(result),
          out_batch_stride,
          out_row_stride};
}

gpm::ScoreMatrixBackward square_backward(int t, Size batch, Size rows, Size width, Address grad,
                                         Size grad_batch_stride, Size grad_row_stride, Address v,
                                         Size batch_stride, Size row_stride, Address scale,
                                         Size scale_stride, Address grad_v, Address grad_scale,
                                         Address workspace) {
  return {dtype(t),
          batch,
          rows,
          width,
          {in(grad), grad_batch_stride, grad_row_stride},
          {in(v), batch_stride, row_stride},
          {in(scale), scale_stride},
          out(grad_v),
          out(grad_scale),
          out(workspace)};
}

gpm::CrossScoreMatrix cross(int t, Size batch, Size rows, Size columns, Size width, Address a,
                            Size a_batch_stride, Size a_row_stride, Address b, Size b_batch_stride,
                            Size b_row_stride, Address scale, Size scale_stride, Address result,
                            Size out_batch_stride, Size out_row_stride) {
  return {dtype(t),
          batch,
          rows,
          columns,
          width,
          {in(a), a_batch_stride, a_row_stride},
          {in(b), b_batch_stride, b_row_stride},
          {in(scale), scale_stride},
          out(result),
          out_batch_stride,
          out_row_stride};
}

gpm::CrossScoreMatrixBackward cross_backward(int t, Size batch, Size rows, Size columns, Size width,
                                             Address grad, Size grad_batch_stride,
                                             Size grad_row_stride, Address a, Size a_batch_stride,
                                             Size a_row_stride, Address b, Size b_batch_stride,
                                             Size b_row_stride, Address scale, Size scale_stride,
                                             Address grad_a, Address grad_b, Address grad_scale,
                                             Address workspace) {
  return {dtype(t),
          batch,
          rows,
          columns,
          width,
          {in(grad), grad_batch_stride, grad_row_stride},
          {in(a), a_batch_stride, a_row_stride},
          {in(b), b_batch_stride, b_row_stride},
          {in(scale), scale_stride},
          out(grad_a),
          out(grad_b),
          out(grad_scale),
          out(workspace)};
}

template <class WithTau, auto make, class Made, class... A>
auto and_tau(Made (*)(A...)) {
  return &Tau<WithTau, Made, A...>::template args<make>;
}

void define_operations(py::module_& m) {
  GPM_DEFINE(m, normalize, normalize);
  GPM_DEFINE(m, normalize_backward, normalize_backward);
  GPM_DEFINE(m, score, score);
  GPM_DEFINE(m, score_backward, score_backward);
  GPM_DEFINE(m, preference_loss, preference_loss);
  GPM_DEFINE(m, preference_loss_backward, preference_loss_backward);
  GPM_DEFINE(m, preference_embedding, preference_embedding);
  GPM_DEFINE(m, preference_embedding_backward, preference_embedding_backward);
  GPM_DEFINE(m, linear_logprob, linear_logprob);
  GPM_DEFINE(m, linear_logprob_backward, linear_logprob_backward);
  GPM_DEFINE(m, score_matrix, square);
  GPM_DEFINE(m, score_matrix_backward, square_backward);
  GPM_DEFINE(m, probability_matrix, (and_tau<gpm::ProbabilityMatrix, square>(square)));
  GPM_DEFINE(m, probability_matrix_backward,
             (and_tau<gpm::ProbabilityMatrixBackward, square_backward>(square_backward)));
  GPM_DEFINE(m, cross_score_matrix, cross);
  GPM_DEFINE(m, cross_score_matrix_backward, cross_backward);
  GPM_DEFINE(m, cross_probability_matrix, (and_tau<gpm::CrossProbabilityMatrix, cross>(cross)));
  GPM_DEFINE(m, cross_probability_matrix_backward,
             (and_tau<gpm::CrossProbabilityMatrixBackward, cross_backward>(cross_backward)));
}

py::dict build_info() {
  py::dict info;
  info["version"] = gpm::version();
  info["compiler"] = gpm::compiler();
  info["openmp"] = gpm::openmp();
  info["simd"] = gpm::cpu::simd_level();
  info["cuda"] = gpm::cuda::toolkit() ? py::object(py::str(gpm::cuda::toolkit())) : py::none();
  info["cuda_architectures"] = py::str(gpm::cuda::architectures()).attr("split")();
  return info;
}

}  // namespace

PYBIND11_MODULE(GPM_MODULE, m) {
  m.doc() = "Compiled kernels of gpm_core; use gpm_core.ops.";
  m.def("build_info", &build_info, "Version, compiler, OpenMP, SIMD level in use, CUDA.");
  m.def(
      "advise_huge_pages",
      [](Address address, Size bytes) { gpm::cpu::advise_huge_pages(out(address), bytes); },
      "Ask for large pages behind memory that nobody has written to.");
#if defined(GPM_HAVE_CUDA)
  py::module_ cuda = m.def_submodule("cuda", "Launches of CUDA kernels.");
  cuda.attr("GRADIENT_ROWS") = gpm::cuda::kGradientRows;
#if !defined(GPM_CUDA_HOST)
  cuda.def("why_not", &gpm::cuda::why_not, Free(), "Why no kernel can run here; empty if it can.");
#endif
#endif
  define_operations(m);
#if defined(GPM_CUDA_HOST)
  define_cuda_host(m);
#endif
}
