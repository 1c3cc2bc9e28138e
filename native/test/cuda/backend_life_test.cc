// The life of the CUDA backend beside its numbers: what it refuses, what it says of itself, that all memory comes back,
// that a batch can be aborted, and that the engine runs on it.
#include "engine/engine.h"
#include "test/cuda/backend_model.h"
#include "test/recorder.h"

namespace chatglm::test {
namespace {

TEST_F(CudaBackendTest, AnAbortedBatchCanBeRunAgain) {
  ModelShape shape = shape_;
  shape.layers = 12;
  const ModelSource source = random_model(shape, DataType::f16, 19);
  constexpr int32_t kTokens = 1500, kPages = 24;
  const Tokens prompt = random_tokens(kTokens, 20, shape.vocabulary);
  const Pages pages = shuffled_pages(kPages, 21);
  Model model(source, options_of(kPages, 2, kTokens)), calm(source, options_of(kPages, 2, kTokens));
  const Rows expected = calm.logits(prompt, pages, kTokens - 20);
  const Segment whole = {prompt, 0, pages, logits_rows(20)},
                token = {{&prompt.back(), 1}, kTokens - 1, pages, logits_rows(1)};
  Rows rows(expected.size());
  const std::atomic<bool> aborted{true};
  EXPECT_FALSE(model.backend->forward({&whole, 1}, rows.data(), nullptr, aborted));
  EXPECT_FALSE(model.backend->forward({&token, 1}, rows.data(), nullptr, aborted));
  for (const int microseconds : {0, 100, 500, 2000}) {
    std::atomic<bool> abort{false};
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
      abort = true;
    });
    const bool complete = model.backend->forward({&whole, 1}, rows.data(), nullptr, abort);
    other.join();
    if (complete) EXPECT_EQ(std::memcmp(rows.data(), expected.data(), expected.size() * sizeof(float)), 0);
  }
  ASSERT_TRUE(model.backend->forward({&whole, 1}, rows.data(), nullptr, kNever));
  EXPECT_EQ(std::memcmp(rows.data(), expected.data(), expected.size() * sizeof(float)), 0);
}

TEST_F(CudaBackendTest, WhatDoesNotFitIsRefusedBeforeAnythingIsTaken) {
  { const Model warm(source_, options_of(4, 1, 100)); }
  size_t free_before = 0, total = 0;
  check(cudaMemGetInfo(&free_before, &total));
  ModelShape vast = shape_;
  vast.vocabulary = 1 << 20;
  vast.hidden_size = 1 << 16;
  const std::pair<ModelSource, int32_t> wishes[] = {
      {source_, 1 << 27}, {source_, INT32_MAX}, {random_model(vast, DataType::f16), 4}};
  for (const auto& [source, pages] : wishes) {
    try {
      const Model model(source, options_of(pages, 1, 100));
      FAIL() << pages;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, "ERR_OUT_OF_MEMORY") << error.what();
      double wanted = 0, free = 0;
      for (const auto& [key, value] : error.details) {
        if (key == "wantedBytes") wanted = std::get<double>(value);
        if (key == "freeBytes") free = std::get<double>(value);
      }
      EXPECT_GT(wanted, 1e11);
      EXPECT_GT(free, 0);
      EXPECT_LE(free, static_cast<double>(total));
    }
  }
  size_t free_after = 0;
  check(cudaMemGetInfo(&free_after, &total));
  EXPECT_NEAR(static_cast<double>(free_after), static_cast<double>(free_before), 4e6);
}

std::string code_of(const std::function<void()>& body) {
  try {
    body();
    return "none";
  } catch (const Error& error) {
    return error.code;
  }
}

// On a GPU that is nearly full: as many pages as fit, which leave room for what the driver takes for the graphs of 256
// sequences; and they work.
TEST_F(CudaBackendTest, AsManyPagesAsFit) {
  const Tokens prompt = random_tokens(640, 34, shape_.vocabulary);
  Model alone(source_, options_of(10, 1, 640));
  const Rows expected = alone.logits(prompt, shuffled_pages(10, 35), 630);
  { const Model warm(source_, options_of(4, 256, 100)); }
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total));
  constexpr size_t kLeft = size_t{600} << 20;
  ASSERT_GT(free, 2 * kLeft);
  const cuda::DeviceMemory ballast(free - kLeft);
  cuda::CudaOptions options = options_of(1 << 27, 256, 640);
  options.least_pages = 1 << 20;
  EXPECT_EQ(code_of([&] { const Model model(source_, options); }), "ERR_OUT_OF_MEMORY");
  options.least_pages = 100;
  {
    Model model(source_, options);
    const BackendInfo info = model.backend->info();
    EXPECT_GT(info.pages, 100);
    EXPECT_LT(info.device_bytes, kLeft);
    // The rest is what the driver keeps, and less than a page.
    EXPECT_GT(info.device_bytes + (size_t{110} << 20) + info.page_bytes, kLeft);
    Pages pages;
    for (int32_t i = 0; i < 10; ++i) pages.push_back(info.pages - 1 - i);
    expect_close(model.logits(prompt, pages, 630), expected, shape_.vocabulary, 0, "in the last pages");
    size_t left = 0;
    check(cudaMemGetInfo(&left, &total));
    RecordProperty("MiBLeft", static_cast<int>(left >> 20));
  }
  options.pages = 50;  // fewer than `least_pages`, and than fit
  const Model few(source_, options);
  EXPECT_EQ(few.backend->info().pages, 50);
}

TEST_F(CudaBackendTest, WhatItCannotComputeIsRefused) {
  const auto code = [](const ModelShape& shape, int32_t device = 0) {
    return code_of([&] {
      cuda::CudaOptions options = options_of(4, 1, 100);
      options.device = device;
      const Model model(random_model(shape, DataType::f32), options);
    });
  };
  ModelShape shape = shape_;
  EXPECT_EQ(code(shape), "none");
  EXPECT_EQ(code(shape, 99), "ERR_DEVICE_UNAVAILABLE");
  EXPECT_EQ(code(shape, -1), "ERR_DEVICE_UNAVAILABLE");
  shape.head_size = 256;
  shape.rope_dimension = 128;
  EXPECT_EQ(code(shape), "ERR_INVALID_ARGUMENT");
  shape = shape_;
  shape.ffn_size = 40;
  EXPECT_EQ(code(shape), "ERR_CHECKPOINT_INVALID");
  const cuda::CudaApi* api = chatglm_cuda_api(cuda::kCudaApiVersion);
  EXPECT_EQ(chatglm_cuda_api(cuda::kCudaApiVersion + 1), nullptr);
  const std::atomic<bool> abort{true};
  EXPECT_EQ(code_of([&] { api->make_backend(source_, options_of(4, 1, 100), no_progress, abort); }), "ERR_ABORTED");
  ASSERT_FALSE(api->gpus().empty());
  EXPECT_FALSE(api->gpus()[0].name.empty());
  EXPECT_GT(api->gpus()[0].free_bytes, 0u);
  EXPECT_GE(api->gpus()[0].total_bytes, api->gpus()[0].free_bytes);
}

TEST_F(CudaBackendTest, AllMemoryComesBack) {
  const Tokens prompt = random_tokens(100, 25, shape_.vocabulary);
  const Pages pages = {0, 1};
  size_t free_before = 0, free_after = 0, total = 0;
  for (int i = 0; i < 20; ++i) {
    {
      Model model(source_, options_of(200, 4, 1000));
      model.logits(prompt, pages, 90);
      model.logits(prompt, pages, 95, 1, 95);
    }
    if (i == 2) check(cudaMemGetInfo(&free_before, &total));  // code and stacks are there by then
  }
  check(cudaMemGetInfo(&free_after, &total));
  EXPECT_GE(static_cast<double>(free_after), static_cast<double>(free_before) - 4e6);
  // Loading that ends early leaves nothing behind either.
  for (int i = 0; i < 5; ++i) {
    std::atomic<bool> abort{false};
    const auto progress = [&](uint64_t bytes, uint64_t all) {
      EXPECT_LE(bytes, all);
      abort = true;
    };
    EXPECT_EQ(
        code_of([&] {
          chatglm_cuda_api(cuda::kCudaApiVersion)->make_backend(source_, options_of(2000, 4, 1000), progress, abort);
        }),
        "ERR_ABORTED");
  }
  check(cudaMemGetInfo(&free_after, &total));
  EXPECT_GE(static_cast<double>(free_after), static_cast<double>(free_before) - 4e6);
}

// Kernels' attributes are the process's, while each model's layers want other shared memory of the same kernels.
TEST_F(CudaBackendTest, ModelsOfSeveralThreadsLoadAndComputeAtOnce) {
  struct Shape {
    ModelSource source;
    Tokens tokens;
    Rows expected;
  };
  std::vector<Shape> shapes;
  for (const auto& [hidden, ffn] : {std::pair{96, 1056}, {2048, 544}, {64, 8192}, {512, 2048}}) {
    ModelShape shape = small_shape(1, 32, hidden, ffn);
    shape.layers = 4;
    shapes.push_back(
        {random_model(shape, DataType::q4_0, 50 + shapes.size()), random_tokens(30, 51, shape.vocabulary), {}});
  }
  const Pages pages = {0};
  const auto compute = [&](const Shape& shape) {
    Model model(shape.source, options_of(1, 8, kPageTokens));
    cuda::gpu_info(0);
    Rows rows = model.logits(shape.tokens, pages, 0, 12);               // with chunks that no graph has
    const Rows singles = model.logits(shape.tokens, pages, 10, 1, 10);  // graphs of one token
    const Rows shorts = model.logits(shape.tokens, pages, 14, 5, 14);   // graphs of short segments
    rows.insert(rows.end(), singles.begin(), singles.end());
    rows.insert(rows.end(), shorts.begin(), shorts.end());
    return rows;
  };
  for (Shape& shape : shapes) shape.expected = compute(shape);
  std::atomic<int> differing{0};
  std::vector<std::string> problems(2 * shapes.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < problems.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        for (int round = 0; round < 8; ++round) {
          const Shape& shape = shapes[(i + static_cast<size_t>(round)) % shapes.size()];
          const Rows rows = compute(shape);
          if (std::memcmp(rows.data(), shape.expected.data(), rows.size() * sizeof(float)) != 0) ++differing;
        }
      } catch (const std::exception& error) {
        problems[i] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& problem : problems) EXPECT_EQ(problem, "");
  EXPECT_EQ(differing, 0);
}

TEST_F(CudaBackendTest, SaysWhatItIs) {
  for (const DataType type : {DataType::f32, DataType::q8_0, DataType::q4_0}) {
    const ModelSource source = random_model(shape_, type);
    const Model model(source, options_of(5, 1, 100));
    const BackendInfo info = model.backend->info();
    EXPECT_EQ(info.device, "cuda:0");
    EXPECT_EQ(info.kernels, cuda::kernels_name(device_));
    EXPECT_EQ(info.mapped_bytes, 0u);
    uint64_t expected = 0, per_token = 0, all = 0;
    for (const TensorSource& t : source.tensors) {
      const bool embedding = t.name == "token_embd.weight";
      const auto bytes = static_cast<uint64_t>(t.rows == 1 || embedding
                                                   ? t.rows * row_bytes(t.type, t.columns)
                                                   : cuda::packed_shape(t.type, t.rows, t.columns, false).bytes());
      expected += bytes;
      per_token += embedding ? static_cast<uint64_t>(row_bytes(t.type, t.columns)) : bytes;
    }
    for (const auto& [name, bytes] : info.weight_types) all += bytes;
    EXPECT_EQ(info.weight_bytes, expected);
    EXPECT_EQ(all, expected);
    EXPECT_EQ(info.bytes_per_token, per_token);
    EXPECT_EQ(info.kv_type, "f16");
    EXPECT_EQ(info.pages, 5);
    EXPECT_EQ(info.page_bytes, 2u * 2 * 64 * 2 * 64 * 2);  // 2 layers, 2 groups, heads filled up to 64, f16
    EXPECT_GE(info.device_bytes, info.weight_bytes + 5 * info.page_bytes);
    EXPECT_NE(info.page_layout, "");
    EXPECT_GE(model.backend->max_batch_tokens(), 256);
    EXPECT_GE(model.backend->max_batch_logits(), 1);
  }
}

// --- Through the engine.

struct Running {
  Recorder recorder;
  std::unique_ptr<Engine> engine;

  explicit Running(const ModelSource& source, bool prefix_cache = true) {
    EngineOptions options;
    options.vocabulary = source.shape.vocabulary;
    options.context_tokens = 400;
    options.max_sequences = 4;
    options.pages = options.max_sequences * options.pages_of_context();
    options.prefix_cache = prefix_cache;
    engine = std::make_unique<Engine>(
        options,
        [=](const Progress& progress, const std::atomic<bool>& abort) {
          return chatglm_cuda_api(cuda::kCudaApiVersion)
              ->make_backend(source, options_of(options.pages, 4, 400), progress, abort);
        },
        recorder);
  }
  Recorder::Answer answer(const Request& request) { return recorder.wait(engine->submit(request)); }
};

TEST_F(CudaBackendTest, TheEngineAnswersWhatTheLogitsSay) {
  for (const DataType type : {DataType::f16, DataType::q4_0}) {
    const ModelSource source = random_model(shape_, type, 26);
    const int32_t vocabulary = shape_.vocabulary;
    Running model(source);
    // More than run at once, of which some begin alike: page copies, waiting, mixed batches.
    std::vector<Tokens> prompts;
    for (int i = 0; i < 9; ++i) prompts.push_back(random_tokens(3 + 37 * i, 27 + static_cast<uint64_t>(i), vocabulary));
    for (const int32_t common : {40, 64, 100}) {
      prompts.emplace_back(prompts[7].begin(), prompts[7].begin() + common);
      prompts.back().push_back(1);
    }
    std::vector<uint32_t> ids;
    for (const Tokens& prompt : prompts) {
      ids.push_back(model.engine->submit(generation(prompt, 30)));
      if (ids.size() == 8) model.recorder.wait(ids.back());
    }
    Model exact = Model::exact(source, 8);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const Recorder::Answer answer = model.recorder.wait(ids[i]);
      ASSERT_EQ(answer.error, "");
      ASSERT_EQ(answer.tokens.size(), 30u);
      Tokens whole = prompts[i];
      whole.insert(whole.end(), answer.tokens.begin(), answer.tokens.end());
      const auto from = static_cast<int32_t>(prompts[i].size()) - 1;
      const Rows expected = exact.logits(whole, {0, 1, 2, 3, 4, 5, 6, 7}, from);
      model.engine->clear_cache();
      const Rows rows = model.answer(logits_of(whole, from)).logits;
      expect_close(rows, expected, vocabulary, 0, "sequence " + std::to_string(i));
      for (size_t t = 0; t < answer.tokens.size(); ++t) {
        // Two logits that are equal but for rounding may change places.
        const auto row = row_of(rows, vocabulary, static_cast<int64_t>(t));
        EXPECT_GE(row[static_cast<size_t>(answer.tokens[t])], *std::max_element(row.begin(), row.end()) - 0.05f)
            << "sequence " << i << " token " << t;
      }
    }
    EXPECT_EQ(model.recorder.failure(), "");
    EXPECT_EQ(model.recorder.info()->device, "cuda:0");
  }
}

TEST_F(CudaNaNTest, TheEngineReportsThem) {
  Running model(poisoned(DataType::q4_0));
  EXPECT_EQ(model.answer(generation(random_tokens(20, 28, 160), 5)).error, "ERR_INVALID_LOGITS");
  EXPECT_EQ(model.answer(generation(random_tokens(5, 29, 160), 20)).error, "ERR_INVALID_LOGITS");
  EXPECT_EQ(model.answer(generation(random_tokens(3, 30, 160), 3)).tokens.size(), 3u);
  EXPECT_EQ(model.recorder.failure(), "");
}

TEST_F(CudaBackendTest, CancellingEndsAnAnswerAndDisposingEndsAll) {
  Running model(source_);
  const uint32_t cancelled = model.engine->submit(generation(random_tokens(300, 31, 160), 90)),
                 kept = model.engine->submit(generation(random_tokens(20, 32, 160), 30));
  model.engine->cancel(cancelled);
  EXPECT_EQ(model.recorder.wait(kept).tokens.size(), 30u);
  EXPECT_EQ(model.recorder.wait(cancelled).finish->reason, FinishReason::cancelled);
  model.engine->submit(generation(random_tokens(300, 33, 160), 90));
  model.engine->stop();
  model.recorder.wait_until_stopped();
}

}  // namespace
}  // namespace chatglm::test
