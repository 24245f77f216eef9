// A device for tests, `strict` (strict_device.py): its memory and arithmetic are the processor's, but it refuses operands
// that lie elsewhere, as a GPU does, and counts where the host would wait for one. It stands in for a GPU where there is
// none: what runs here has every tensor in its place.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <cstring>

namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device HERE(KIND, 0);

int64_t waits = 0;  // what would wait for the device: copies to the host, and those to it from memory that moves

// What torch asks of any device: memory, and streams, of which there is one.

struct Guard : c10::impl::DeviceGuardImplInterface {
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

void release(void* memory) { c10::free_cpu(memory); }

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {memory, memory, &release, HERE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} memory;
REGISTER_ALLOCATOR(KIND, &memory);

struct Hooks : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  bool isPinnedPtr(const void*) const override { return false; }
};
const bool hooked = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

// The same memory as a tensor of the processor's, and back as a copy.

Tensor on_host(const Tensor& t) {
  Tensor view = at::from_blob(t.data_ptr(), t.sizes(), t.strides(), t.options().device(at::kCPU).requires_grad(false));
  view = t.is_conj() ? view.conj() : view;
  return t.is_neg() ? at::_neg_view(view) : view;
}

Tensor brought(const Tensor& t) {
  if (!t.defined()) return t;
  Tensor dense = t.contiguous(), found = at::empty(t.sizes(), t.options().device(HERE));
  std::memcpy(found.data_ptr(), dense.data_ptr(), dense.nbytes());
  return found;
}

void refuse_host(const Tensor& t, const std::string& name) {  // single numbers travel with the call
  TORCH_CHECK(!t.defined() || !t.device().is_cpu() || !t.dim(), "strict: an operand of ", name, " lies on the CPU");
}

// What cannot be the processor's, because it makes tensors, looks at them another way, or carries them.

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<c10::Device>,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(type), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                     std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(type));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool on_its_way) {
  waits += from.device() != to.device() && !(from.device().is_cpu() && on_its_way);
  Tensor target = to.device().is_cpu() ? to : on_host(to);
  target.copy_(from.device().is_cpu() ? from : on_host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar number(const Tensor& t) {
  waits++;
  return on_host(t).item();
}

const Tensor& resize(const Tensor& self, IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* impl = self.unsafeGetTensorImpl();
  auto* storage = impl->storage().unsafeGetStorageImpl();
  const size_t bytes = c10::multiply_integers(size) * self.dtype().itemsize();
  if (storage->nbytes() < bytes) {
    c10::DataPtr larger = memory.allocate(bytes);
    if (storage->nbytes()) std::memcpy(larger.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr(std::move(larger));
    storage->set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(size);
  return self;
}

Tensor& set(Tensor& self, at::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_offset(offset);
  impl->set_storage_keep_dtype(storage);
  impl->set_sizes_and_strides(size, stride);
  return self;
}

// What torch asks of devices of their own by other names.

std::vector<int64_t> numbers(c10::SymIntArrayRef values) { return C10_AS_INTARRAYREF_SLOW(values).vec(); }

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, c10::SymIntArrayRef stride,
                   c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                   c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  std::optional<Tensor> shift;
  if (bias && bias->defined()) shift = on_host(*bias);
  for (const Tensor& t : {x, weight, shift ? *bias : weight}) refuse_host(t, "convolution");
  return brought(at::convolution(on_host(x), on_host(weight), shift, numbers(stride), numbers(padding),
                                 numbers(dilation), transposed, numbers(output_padding), groups.expect_int()));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> wanted) {
  for (const Tensor& t : {grad, x, weight}) refuse_host(t, "convolution_backward");
  const std::vector<int64_t> of_bias{grad.size(1)};
  auto [by_x, by_weight, by_bias] = at::convolution_backward(
      on_host(grad), on_host(x), on_host(weight), IntArrayRef(of_bias), numbers(stride), numbers(padding),
      numbers(dilation), transposed, numbers(output_padding), groups.expect_int(), wanted);
  return {brought(by_x), brought(by_weight), brought(by_bias)};
}

std::optional<Tensor> on_host_if(const std::optional<Tensor>& t) {
  return t && t->defined() ? std::optional<Tensor>(on_host(*t)) : std::nullopt;
}

// The running statistics are changed in place, which the schema does not say.
std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, const std::optional<Tensor>& mean,
                                              const std::optional<Tensor>& variance, bool training, double momentum,
                                              double eps) {
  for (const auto& t : {std::optional<Tensor>(x), weight, bias, mean, variance})
    if (t) refuse_host(*t, "batch_norm");
  auto [out, batch_mean, batch_deviation] =
      at::native_batch_norm(on_host(x), on_host_if(weight), on_host_if(bias), on_host_if(mean), on_host_if(variance),
                            training, momentum, eps);
  return {brought(out), brought(batch_mean), brought(batch_deviation)};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& from_input, const Tensor& from_hidden, const Tensor& c,
                                             const std::optional<Tensor>& bias, const std::optional<Tensor>& other) {
  for (const Tensor& t : {from_input, from_hidden, c}) refuse_host(t, "lstm_cell");
  Tensor gates = on_host(from_input) + on_host(from_hidden);
  if (bias && bias->defined()) gates = gates + on_host(*bias) + on_host(*other);
  const auto parts = gates.chunk(4, 1);
  const Tensor i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(), o = parts[3].sigmoid();
  const Tensor next = f * on_host(c) + i * g;
  return {brought(o * next.tanh()), brought(next), brought(at::cat({i, f, g, o}, 1))};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(const std::optional<Tensor>& by_h, const std::optional<Tensor>& by_c,
                                                      const Tensor& before, const Tensor& after, const Tensor& gates,
                                                      bool has_bias) {
  const Tensor c = on_host(before), bent = on_host(after).tanh();
  const auto parts = on_host(gates).chunk(4, 1);
  const Tensor i = parts[0], f = parts[1], g = parts[2], o = parts[3];
  const Tensor dh = by_h && by_h->defined() ? on_host(*by_h) : at::zeros_like(c);
  const Tensor dc = (by_c && by_c->defined() ? on_host(*by_c) : at::zeros_like(c)) + dh * o * (1 - bent * bent);
  const Tensor found = at::cat(
      {dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * bent * o * (1 - o)}, 1);
  return {brought(found), brought(dc * f), has_bias ? brought(found.sum(0)) : Tensor()};
}

// Everything else is the processor's, whose copies to and fro are not counted. An index may lie on the host, as for
// CUDA, which then waits for it.

void processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  const bool indexes = name.find("index") != std::string::npos;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) {
      const Tensor& t = value.toTensor();
      refuse_host(t, name);
      waits += indexes && t.defined() && t.device().is_cpu();
    }
    if (!value.isList()) continue;
    for (const c10::IValue& one : value.toListRef()) {
      if (!one.isTensor()) continue;
      const Tensor& t = one.toTensor();
      if (indexes && t.defined() && t.device().is_cpu()) waits++;
      else refuse_host(t, name);
    }
  }
  const int64_t before = waits;
  at::native::cpu_fallback(op, stack);
  waits = before;
}

int64_t so_far() { return waits; }

TORCH_LIBRARY(strict, m) { m.def("waits", &so_far); }
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&processor>()); }
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &number);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("view_as_real", TORCH_FN(at::native::view_as_real));
  m.impl("view_as_complex", TORCH_FN(at::native::view_as_complex));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("native_batch_norm", &batch_norm);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
}

}  // namespace
