// The speed of the CUDA backend on a random model of the 6B shape, each figure as a share of what the GPU allows: of a
// plain read of its memory, measured in the same run, or of its matrix units' rate.
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "base/data_type.h"
#include "benchmark/cuda/report.h"
#include "cuda/api.h"

namespace {

constexpr char kUsage[] =
    "chatglm_cuda_bench [options]\n"
    "  --only LIST       of memory, graphs, step, kernels (all)\n"
    "  --type LIST       of q4_0, q8_0, f16: types of the weights (q4_0)\n"
    "  --kv f16|q8_0     type of keys and values in steps (f16)\n"
    "  --filter TEXT     only kernels whose name contains it\n"
    "  --steps N         steps of which the median is taken (40)\n"
    "  --layers N        of the model (28)\n"
    "  --device N        index of the GPU (0)\n"
    "  --tflops X        what the GPU's matrix units do in dense f16, TFLOP/s (790: H100)\n"
    "  --out FILE        every measurement with all its numbers, separated by tabs\n";

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

int refuse(const std::string& why) {
  std::fprintf(stderr, "%s\n%s", why.c_str(), kUsage);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace chatglm;
  benchmark::Settings settings;
  settings.types = {"q4_0"};
  std::vector<std::string> parts = {"memory", "graphs", "step", "kernels"};
  std::string out;
  double tflops = 790;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--help") {
      std::printf("%s", kUsage);
      return 0;
    }
    if (i + 1 == argc) return refuse(option + ": no such option, or its value is missing");
    const std::string value = argv[++i];
    const int number = std::atoi(value.c_str());
    if (option == "--only") {
      parts = split(value);
      for (const std::string& part : parts) {
        if (part != "step" && part != "kernels" && part != "memory" && part != "graphs")
          return refuse("--only: " + part);
      }
    } else if (option == "--type") {
      settings.types = split(value);
      for (const std::string& type : settings.types) {
        if (type != "q4_0" && type != "q8_0" && type != "f16") return refuse("--type: " + type);
      }
    } else if (option == "--kv" && (value == "f16" || value == "q8_0")) {
      settings.kv_q8_0 = value == "q8_0";
    } else if (option == "--filter") {
      settings.filter = value;
    } else if (option == "--steps" && number >= 1) {
      settings.steps = number;
    } else if (option == "--layers" && number >= 1) {
      settings.layers = number;
    } else if (option == "--device" && number >= 0) {
      settings.device = number;
    } else if (option == "--tflops" && number >= 1) {
      tflops = std::atof(value.c_str());
    } else if (option == "--out") {
      out = value;
    } else {
      return refuse(option + " " + value + ": no such option or value");
    }
  }

  try {
    benchmark::Report report(out, tflops * 1e12);
    const cuda::CudaApi* api = chatglm_cuda_api(cuda::kCudaApiVersion);
    if (!api) throw std::runtime_error("the CUDA library is of another version");
    const std::vector<cuda::GpuInfo> gpus = api->gpus();
    const cuda::GpuInfo& gpu = gpus.at(static_cast<size_t>(settings.device));
    benchmark::check(cudaSetDevice(settings.device), "cudaSetDevice");
    report.ceilings.bytes_per_second = api->measure_bandwidth(settings.device, uint64_t{4} << 30);
    report.print("%s, compute capability %s, %.1f of %.1f GB free, plain read %.0f GB/s\n", gpu.name.c_str(),
                 gpu.compute_capability.c_str(), static_cast<double>(gpu.free_bytes) / 1e9,
                 static_cast<double>(gpu.total_bytes) / 1e9, report.ceilings.bytes_per_second / 1e9);
    for (const std::string& part : parts) {
      const auto measure = part == "step"     ? benchmark::measure_steps
                           : part == "memory" ? benchmark::measure_memory
                           : part == "graphs" ? benchmark::measure_graphs
                                              : benchmark::measure_kernels;
      report.attempt(part, [&] { measure(settings, report); });
    }
    return report.failed ? 1 : 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
