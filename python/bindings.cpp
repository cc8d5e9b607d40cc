// The Python module gpm_core._C: pointers, sizes and strides in, nothing out but numbers in memory.
//
// No tensor is allocated and nothing is checked here; gpm_core/backends/native does both. The
// interpreter is free while kernels run.
#include <pybind11/pybind11.h>

#include "gpm/gpm.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using Size = int64_t;

const void* in(Address address) { return reinterpret_cast<const void*>(address); }
void* out(Address address) { return reinterpret_cast<void*>(address); }
const Size* indices(Address address) { return reinterpret_cast<const Size*>(address); }
gpm::DType dtype(int code) { return static_cast<gpm::DType>(code); }

py::dict build_info() {
  py::dict info;
  info["version"] = gpm::version();
  info["compiler"] = gpm::compiler();
  info["openmp"] = gpm::openmp();
  info["simd"] = gpm::cpu::simd_level();
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::tuple();
  return info;
}

using Free = py::call_guard<py::gil_scoped_release>;

void define_rows(py::module_& m) {
  m.def(
      "normalize",
      [](int t, Size rows, Size width, double eps, Address x, Size x_stride, Address result,
         int threads) {
        gpm::cpu::normalize({dtype(t), rows, width, eps, {in(x), x_stride}, out(result)}, threads);
      },
      Free());
  m.def(
      "normalize_backward",
      [](int t, Size rows, Size width, double eps, Address grad, Size grad_stride, Address x,
         Size x_stride, Address result, int threads) {
        gpm::cpu::normalize_backward(
            {dtype(t), rows, width, eps, {in(grad), grad_stride}, {in(x), x_stride}, out(result)},
            threads);
      },
      Free());
  m.def(
      "score",
      [](int t, Size rows, Size width, Address a, Size a_stride, Address b, Size b_stride,
         Address scale, Size scale_stride, Address result, int threads) {
        gpm::cpu::score({dtype(t),
                         rows,
                         width,
                         {in(a), a_stride},
                         {in(b), b_stride},
                         {in(scale), scale_stride},
                         out(result)},
                        threads);
      },
      Free());
  m.def(
      "score_backward",
      [](int t, Size rows, Size width, Address grad, Address a, Size a_stride, Address b,
         Size b_stride, Address scale, Size scale_stride, Address grad_a, Address grad_b,
         Address grad_scale, int threads) {
        gpm::cpu::score_backward({dtype(t),
                                  rows,
                                  width,
                                  in(grad),
                                  {in(a), a_stride},
                                  {in(b), b_stride},
                                  {in(scale), scale_stride},
                                  out(grad_a),
                                  out(grad_b),
                                  out(grad_scale)},
                                 threads);
      },
      Free());
}

void define_preference_loss(py::module_& m) {
  m.def(
      "preference_loss",
      [](int t, Size rows, Size width, double tau, Address chosen, Size chosen_stride,
         Address rejected, Size rejected_stride, Address scale, Size scale_stride, Address margin,
         Size margin_stride, Address target, Size target_stride, Address loss, Address probability,
         int threads) {
        gpm::cpu::preference_loss({dtype(t),
                                   rows,
                                   width,
                                   tau,
                                   {in(chosen), chosen_stride},
                                   {in(rejected), rejected_stride},
                                   {in(scale), scale_stride},
                                   {in(margin), margin_stride},
                                   {in(target), target_stride},
                                   out(loss),
                                   out(probability)},
                                  threads);
      },
      Free());
  m.def(
      "preference_loss_backward",
      [](int t, Size rows, Size width, double tau, Address grad_loss, Address grad_probability,
         Address chosen, Size chosen_stride, Address rejected, Size rejected_stride, Address scale,
         Size scale_stride, Address margin, Size margin_stride, Address target, Size target_stride,
         Address grad_chosen, Address grad_rejected, Address grad_scale, Address grad_margin,
         Address grad_target, int threads) {
        gpm::cpu::preference_loss_backward({dtype(t),
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
                                            out(grad_target)},
                                           threads);
      },
      Free());
}

void define_preference_embedding(py::module_& m) {
  m.def(
      "preference_embedding",
      [](int t, Size rows, Size length, Size size, Size width, bool normalized, double eps,
         Address hidden, Size batch_stride, Size row_stride, Address positions, Address weight,
         Size weight_stride, Address bias, Address result, Address projection, int threads) {
        gpm::cpu::preference_embedding({dtype(t),
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
                                        out(projection)},
                                       threads);
      },
      Free());
  m.def(
      "preference_embedding_backward",
      [](int t, Size rows, Size length, Size size, Size width, bool normalized, double eps,
         Address grad, Size grad_stride, Address hidden, Size batch_stride, Size row_stride,
         Address positions, Address weight, Size weight_stride, Address projection,
         Address grad_projection, Address grad_hidden, Address grad_weight, Address grad_bias,
         int threads) {
        gpm::cpu::preference_embedding_backward({dtype(t),
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
                                                 out(grad_bias)},
                                                threads);
      },
      Free());
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
                                         Size scale_stride, Address grad_v, Address grad_scale) {
  return {dtype(t),
          batch,
          rows,
          width,
          {in(grad), grad_batch_stride, grad_row_stride},
          {in(v), batch_stride, row_stride},
          {in(scale), scale_stride},
          out(grad_v),
          out(grad_scale)};
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
                                             Address grad_a, Address grad_b, Address grad_scale) {
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
          out(grad_scale)};
}

// m.def of an operation whose arguments are those of `make`, then tau where it has one, then
// threads.
template <class Args, class... A>
void define_matrix(py::module_& m, const char* name, Args (*make)(A...),
                   void (*run)(const Args&, int)) {
  m.def(name, [make, run](A... a, int threads) { run(make(a...), threads); }, Free());
}

template <class WithTau, class Args, class... A>
void define_probability(py::module_& m, const char* name, Args (*make)(A...),
                        void (*run)(const WithTau&, int)) {
  m.def(
      name,
      [make, run](A... a, double tau, int threads) {
        WithTau args{make(a...), tau};
        run(args, threads);
      },
      Free());
}

void define_matrices(py::module_& m) {
  namespace cpu = gpm::cpu;
  define_matrix(m, "score_matrix", square, cpu::score_matrix);
  define_matrix(m, "score_matrix_backward", square_backward, cpu::score_matrix_backward);
  define_probability<gpm::ProbabilityMatrix>(m, "probability_matrix", square,
                                             cpu::probability_matrix);
  define_probability<gpm::ProbabilityMatrixBackward>(
      m, "probability_matrix_backward", square_backward, cpu::probability_matrix_backward);
  define_matrix(m, "cross_score_matrix", cross, cpu::cross_score_matrix);
  define_matrix(m, "cross_score_matrix_backward", cross_backward, cpu::cross_score_matrix_backward);
  define_probability<gpm::CrossProbabilityMatrix>(m, "cross_probability_matrix", cross,
                                                  cpu::cross_probability_matrix);
  define_probability<gpm::CrossProbabilityMatrixBackward>(m, "cross_probability_matrix_backward",
                                                          cross_backward,
                                                          cpu::cross_probability_matrix_backward);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of gpm_core; use gpm_core.ops.";
  m.def("build_info", &build_info, "Version, compiler, OpenMP, SIMD level in use, CUDA.");
  m.def(
      "advise_huge_pages",
      [](Address address, Size bytes) { gpm::cpu::advise_huge_pages(out(address), bytes); },
      "Ask for large pages behind memory that nobody has written to.");
  define_rows(m);
  define_preference_loss(m);
  define_preference_embedding(m);
  define_matrices(m);
}
