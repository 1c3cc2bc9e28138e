#include "addon/model.h"

#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "addon/arguments.h"
#include "addon/device.h"
#include "addon/generation.h"
#include "addon/grammars.h"
#include "addon/thread_job.h"
#include "engine/engine.h"
#include "engine/grammar_constraint.h"

namespace chatglm::addon {

namespace {

// Sizes in JavaScript are doubles: whole up to 2^53.
constexpr int64_t kMostBytes = int64_t{1} << 53;
constexpr int64_t kMostCount = std::numeric_limits<int32_t>::max();

FileRange range_of(const Napi::Value& value, const char* name) {
  const Napi::Object object = object_of(value, name);
  return {static_cast<int32_t>(integer_of(object.Get("file"), "file", 0, kMostCount)),
          static_cast<uint64_t>(integer_of(object.Get("offset"), "offset", 0, kMostBytes)),
          static_cast<uint64_t>(integer_of(object.Get("length"), "length", 0, kMostBytes))};
}

DataType type_of(const Napi::Value& value) {
  const std::string name = string_of(value, "type");
  if (const auto type = data_type_by_name(name)) return *type;
  throw Error("ERR_INVALID_ARGUMENT", "there is no tensor type '" + name + "'");
}

TensorSource tensor_of(const Napi::Value& value) {
  const Napi::Object object = object_of(value, "tensor");
  TensorSource tensor;
  tensor.name = string_of(object.Get("name"), "name");
  tensor.type = type_of(object.Get("type"));
  const Napi::Array shape = array_of(object.Get("shape"), "shape");
  if (shape.Length() < 1 || shape.Length() > 2)
    throw Error("ERR_INVALID_ARGUMENT", "shape must have 1 or 2 dimensions");
  // The product of two dimensions of at most 2^31 fits; a row's bytes are checked against the file later.
  tensor.columns = integer_of(shape.Get(shape.Length() - 1), "shape", 1, kMostCount);
  tensor.rows = shape.Length() == 2 ? integer_of(shape.Get(0u), "shape", 1, kMostCount) : 1;
  tensor.random = object.Get("data").IsUndefined();
  if (!tensor.random) tensor.data = range_of(object.Get("data"), "data");
  if (tensor.type == DataType::int8 || tensor.type == DataType::int4) {
    tensor.scale = range_of(object.Get("scale"), "scale");
    tensor.scale_type = type_of(object.Get("scale").As<Napi::Object>().Get("type"));
    if (tensor.scale_type > DataType::bf16) throw Error("ERR_INVALID_ARGUMENT", "scales are f32, f16 or bf16");
  }
  return tensor;
}

Architecture architecture_of(const Napi::Object& object) {
  Architecture architecture;
  architecture.norm = choice_of(object.Get("norm"), "architecture.norm", {std::pair{"rms", Architecture::Norm::rms}});
  architecture.activation = choice_of(object.Get("activation"), "architecture.activation",
                                      {std::pair{"swiglu", Architecture::Activation::swiglu}});
  architecture.rotary = choice_of(object.Get("rotary"), "architecture.rotary",
                                  {std::pair{"interleaved", Architecture::Rotary::interleaved}});
  architecture.mask =
      choice_of(object.Get("mask"), "architecture.mask", {std::pair{"causal", Architecture::Mask::causal}});
  architecture.qkv_bias = boolean_of(object.Get("qkvBias"), "architecture.qkvBias");
  return architecture;
}

ModelShape shape_of(const Napi::Object& config) {
  const auto count = [&](const char* name) {
    return static_cast<int32_t>(integer_of(config.Get(name), name, 0, kMostCount));
  };
  const auto number = [&](const char* name) { return static_cast<float>(number_of(config.Get(name), name)); };
  ModelShape shape;
  shape.layers = count("layers");
  shape.hidden_size = count("hiddenSize");
  shape.heads = count("heads");
  shape.kv_groups = count("kvGroups");
  shape.head_size = count("headSize");
  shape.ffn_size = count("ffnHiddenSize");
  shape.vocabulary = count("vocabSize");
  shape.norm_epsilon = number("normEpsilon");
  shape.rope_dimension = count("ropeDimension");
  shape.rope_base = number("ropeBase");
  shape.rope_scale = number("ropeScale");
  return shape;
}

struct Spec {
  ModelSource source;
  DeviceOptions options;
};

Spec spec_of(const Napi::Object& object) {
  const auto integer = [&](const char* name, int64_t least, int64_t most) {
    return static_cast<int32_t>(integer_of(object.Get(name), name, least, most));
  };
  Spec spec;
  const Napi::Array files = array_of(object.Get("files"), "files");
  for (uint32_t i = 0; i < files.Length(); ++i) spec.source.files.push_back(string_of(files.Get(i), "files"));
  const Napi::Array tensors = array_of(object.Get("tensors"), "tensors");
  for (uint32_t i = 0; i < tensors.Length(); ++i) spec.source.tensors.push_back(tensor_of(tensors.Get(i)));
  spec.source.shape = shape_of(object_of(object.Get("config"), "config"));
  spec.source.shape.architecture = architecture_of(object_of(object.Get("architecture"), "architecture"));
  spec.source.threads = integer("threads", 1, 1024);
  spec.source.seed = static_cast<uint64_t>(integer_of(object.Get("seed"), "seed", 0, kMostBytes));
  const std::string quantization = string_of(object.Get("quantization"), "quantization");
  spec.source.quantize = !quantization.empty();
  spec.source.quantized_type = quantization == "int4" ? DataType::q4_0 : DataType::q8_0;

  EngineOptions& engine = spec.options.engine;
  engine.vocabulary = spec.source.shape.vocabulary;
  engine.context_tokens = integer("contextLength", 1, 1 << 24);
  engine.max_sequences = integer("maxSequences", 1, 256);
  engine.max_queue = integer("maxQueue", 0, 1 << 20);
  const int64_t tokens =
      integer_of(object.Get("kvCacheTokens"), "kvCacheTokens", engine.context_tokens, int64_t{1} << 36);
  engine.pages = static_cast<int32_t>((tokens + kPageTokens - 1) / kPageTokens);
  const bool shrinks = boolean_of(object.Get("kvCacheShrinks"), "kvCacheShrinks");
  engine.least_pages = shrinks ? engine.pages_of_context() : engine.pages;
  engine.prefix_cache = boolean_of(object.Get("prefixCache"), "prefixCache");
  engine.speculation = boolean_of(object.Get("speculation"), "speculation");
  engine.prefill_budget_ms = number_of(object.Get("prefillBudgetMs"), "prefillBudgetMs");
  spec.options.device = string_of(object.Get("device"), "device");
  spec.options.kv_type = string_of(object.Get("kvCacheType"), "kvCacheType");
  return spec;
}

// A model's engine and its way to JavaScript. It belongs to the thread-safe function, whose finalizer, which also runs
// when the environment is torn down, waits for the engine's thread; the JavaScript object has a share in it.
class Session final : public EngineListener {
 public:
  static std::shared_ptr<Session> start(Napi::Env env, Spec spec, Napi::Function on_events) {
    auto session = std::make_shared<Session>();
    auto* owner = new std::shared_ptr<Session>(session);
    const napi_status status =
        napi_create_threadsafe_function(env, on_events, nullptr, Napi::String::New(env, "chatglm:model"), 0, 1, owner,
                                        finalize, session.get(), deliver, &session->function_);
    if (status != napi_ok) {
      delete owner;
      throw Napi::Error::New(env);
    }
    const EngineOptions options = spec.options.engine;
    // The engine, whose thread calls this, belongs to the session.
    auto load = [spec = std::move(spec), self = session.get()](const Progress& progress,
                                                               const std::atomic<bool>& abort) {
      const auto warn = [self](const Error& error) { self->send({.type = Event::Type::warning, .error = error}); };
      return make_backend(spec.source, spec.options, progress, warn, abort);
    };
    try {
      session->engine_ = std::make_unique<Engine>(options, std::move(load), *session);
    } catch (...) {  // the system gave no thread
      napi_release_threadsafe_function(session->function_, napi_tsfn_release);
      throw;
    }
    return session;
  }

  // JavaScript's thread calls the methods from here to add_pending(); the engine's thread calls the listener's.
  Engine& engine() {
    if (engine_) return *engine_;
    const std::lock_guard lock(mutex_);
    if (failure_) throw *failure_;  // the engine has gone with its thread, its cause remains
    throw Error("ERR_DISPOSED", "the model was disposed");
  }
  void stop() {
    if (engine_) engine_->stop();
  }
  void dispose(Napi::Env env) {
    if (!engine_ || stopping_) return;
    stopping_ = true;
    add_pending(env, 1);  // the caller may wait for the end
    engine_->stop();
  }
  // While anything is pending, the process must not end.
  void add_pending(Napi::Env env, int change) {
    if (pending_ == 0 && change > 0) napi_ref_threadsafe_function(env, function_);
    pending_ += change;
    if (pending_ == 0 && change < 0) napi_unref_threadsafe_function(env, function_);
  }

  void on_progress(uint64_t bytes, uint64_t total_bytes) override {
    send({.type = Event::Type::progress, .bytes = bytes, .total_bytes = total_bytes});
  }
  void on_ready(const BackendInfo& info) override { send({.type = Event::Type::ready, .info = info}); }
  void on_failed(const Error& error) override {
    {
      const std::lock_guard lock(mutex_);
      failure_ = error;
    }
    send({.type = Event::Type::failed, .error = error});
  }
  void on_admitted(uint32_t request) override { send({.type = Event::Type::admitted, .request = request}); }
  void on_token(uint32_t request, int32_t token, const Outcome* outcome) override {
    Event event{.type = Event::Type::token, .request = request, .token = token};
    if (outcome) event.outcome = std::make_unique<Outcome>(*outcome);
    send(std::move(event));
  }
  void on_logits(uint32_t request, int32_t position, std::span<const float> logits) override {
    send({.type = Event::Type::logits,
          .request = request,
          .position = position,
          .logits = {logits.begin(), logits.end()}});
  }
  void on_scores(uint32_t request, int32_t position, std::span<const Outcome> scores) override {
    send({.type = Event::Type::scores,
          .request = request,
          .position = position,
          .scores = {scores.begin(), scores.end()}});
  }
  void on_trace(uint32_t request, const Trace& trace) override {
    send({.type = Event::Type::trace, .request = request, .trace = trace});
  }
  void on_finish(uint32_t request, const Finish& finish) override {
    send({.type = Event::Type::finish, .request = request, .finish = finish});
  }
  void on_error(uint32_t request, const Error& error) override {
    send({.type = Event::Type::error, .request = request, .error = error});
  }
  void on_pages(uint32_t call, std::vector<uint8_t> data, const Error* error) override {
    Event event{.type = Event::Type::pages, .request = call};
    event.data = std::move(data);
    if (error) event.error = *error;
    send(std::move(event));
  }
  void on_stopped() override {
    send({.type = Event::Type::disposed});
    if (open_) napi_release_threadsafe_function(function_, napi_tsfn_release);
  }

 private:
  // JavaScript gets one call for all events that gather until it runs.
  void send(Event event) {
    {
      const std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
      if (scheduled_ || !open_) return;
      scheduled_ = true;
    }
    // Once the environment is closing, the function may not be touched again.
    if (napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking) == napi_closing) open_ = false;
  }

  static void deliver(napi_env raw_env, napi_value callback, void* context, void*) {
    if (!raw_env || !callback) return;  // the environment is going down
    try {
      static_cast<Session*>(context)->deliver_to(raw_env, callback);
    } catch (const Napi::Error&) {
      // No JavaScript can run any more: a worker is being terminated, or the process is about to end.
    }
  }

  void deliver_to(Napi::Env env, napi_value callback) {
    std::vector<Event> events;
    {
      const std::lock_guard lock(mutex_);
      events.swap(events_);
      scheduled_ = false;
    }
    const Napi::HandleScope scope(env);
    Napi::Array array = Napi::Array::New(env, events.size());
    int ended = 0;
    for (size_t i = 0; i < events.size(); ++i) {
      array.Set(static_cast<uint32_t>(i), events[i].to_js(env));
      const Event::Type type = events[i].type;
      // Pending are: loading until it is ready or has failed, each request and each call for pages until its end, and
      // stopping.
      const bool loaded = type == Event::Type::ready || type == Event::Type::failed;
      if ((loaded && std::exchange(loading_, false)) || type == Event::Type::finish || type == Event::Type::error ||
          type == Event::Type::pages || (type == Event::Type::disposed && stopping_)) {
        ++ended;
      }
    }
    napi_value undefined, result, argument = array;
    napi_get_undefined(env, &undefined);
    if (napi_call_function(env, undefined, callback, 1, &argument, &result) == napi_pending_exception) {
      napi_value exception;
      napi_get_and_clear_last_exception(env, &exception);
      napi_fatal_exception(env, exception);
    }
    if (ended > 0) add_pending(env, -ended);
  }

  static void finalize(napi_env, void* data, void*) {
    auto* owner = static_cast<std::shared_ptr<Session>*>(data);
    (*owner)->engine_.reset();
    delete owner;
  }

  napi_threadsafe_function function_ = nullptr;
  std::unique_ptr<Engine> engine_;
  int pending_ = 1;  // loading
  bool loading_ = true;
  bool stopping_ = false;
  std::mutex mutex_;  // guards failure_, events_ and scheduled_
  std::optional<Error> failure_;
  std::vector<Event> events_;
  bool scheduled_ = false;
  bool open_ = true;  // the engine thread's own
};

class GrammarJob final : public ThreadJob {
 public:
  GrammarJob(std::shared_ptr<Grammars> grammars, GrammarSpec spec)
      : grammars_(std::move(grammars)), spec_(std::move(spec)) {}

 private:
  void run() override { grammars_->get(spec_); }

  const std::shared_ptr<Grammars> grammars_;
  const GrammarSpec spec_;
};

class ModelObject : public Napi::ObjectWrap<ModelObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "Model",
        {InstanceMethod<&ModelObject::prepare_grammar>("prepareGrammar"),
         InstanceMethod<&ModelObject::submit>("submit"), InstanceMethod<&ModelObject::cancel>("cancel"),
         InstanceMethod<&ModelObject::clear_cache>("clearCache"), InstanceMethod<&ModelObject::stats>("stats"),
         InstanceMethod<&ModelObject::read_pages>("readPages"), InstanceMethod<&ModelObject::write_pages>("writePages"),
         InstanceMethod<&ModelObject::import_pages>("importPages"), InstanceMethod<&ModelObject::release>("release"),
         InstanceMethod<&ModelObject::dispose>("dispose")});
  }

  explicit ModelObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelObject>(info) {
    guarded(info.Env(), [&] {
      Spec spec = spec_of(object_of(info[0], "spec"));
      if (info[2].IsExternal()) grammars_ = *info[2].As<GrammarsHandle>().Data();
      session_ = Session::start(info.Env(), std::move(spec), function_of(info[1], "onEvents"));
    });
  }
  // The end of the JavaScript object stops the engine, which gives the model's memory back.
  ~ModelObject() override {
    if (session_) session_->stop();
  }

 private:
  Grammars& grammars() const {
    if (grammars_) return *grammars_;
    throw Error("ERR_INVALID_ARGUMENT", "a grammar needs the model's tokenizer, and this model has none");
  }

  Napi::Value prepare_grammar(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      grammars();  // or there are none
      ThreadJob::start(info.Env(), std::make_shared<GrammarJob>(grammars_, grammar_of(info[0])),
                       function_of(info[1], "onEnd"), "chatglm:grammar");
      return info.Env().Undefined();
    });
  }

  Napi::Value submit(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      Request request = request_of(info[0]);
      const Napi::Value grammar = info[0].As<Napi::Object>().Get("grammar");
      if (!grammar.IsUndefined()) {
        request.sampling.constraint =
            std::make_shared<GrammarConstraint>(grammars().get(grammar_of(grammar)), request.stop_tokens);
      }
      const uint32_t id = session_->engine().submit(std::move(request));
      session_->add_pending(info.Env(), 1);
      return Napi::Number::New(info.Env(), id);
    });
  }

  Napi::Value cancel(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      session_->engine().cancel(number_argument(info[0], "request"));
      return info.Env().Undefined();
    });
  }

  Napi::Value clear_cache(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      session_->engine().clear_cache();
      return info.Env().Undefined();
    });
  }

  Napi::Value stats(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Engine::Stats stats = session_->engine().stats();
      Napi::Object object = Napi::Object::New(info.Env());
      object.Set("activeSequences", stats.active_sequences);
      object.Set("queuedRequests", stats.queued_requests);
      object.Set("cachedTokens", static_cast<double>(stats.cached_tokens));
      object.Set("usedPages", stats.used_pages);
      object.Set("totalPages", stats.total_pages);
      object.Set("steps", static_cast<double>(stats.steps));
      object.Set("prefillTokens", static_cast<double>(stats.prefill_tokens));
      object.Set("generatedTokens", static_cast<double>(stats.generated_tokens));
      object.Set("draftedTokens", static_cast<double>(stats.drafted_tokens));
      object.Set("acceptedTokens", static_cast<double>(stats.accepted_tokens));
      object.Set("preemptions", static_cast<double>(stats.preemptions));
      return object;
    });
  }

  Napi::Value read_pages(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const uint32_t call = session_->engine().read_pages(number_argument(info[0], "pin"), page_argument(info[1]),
                                                          page_argument(info[2]));
      session_->add_pending(info.Env(), 1);
      return Napi::Number::New(info.Env(), call);
    });
  }

  Napi::Value import_pages(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::vector<uint32_t> ids = ids_of(info[0], "tokens");
      return Napi::Number::New(info.Env(), session_->engine().import_pages({ids.begin(), ids.end()}));
    });
  }

  Napi::Value write_pages(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Napi::Uint8Array data = bytes_of(info[2], "data");
      const uint32_t call = session_->engine().write_pages(number_argument(info[0], "pin"), page_argument(info[1]),
                                                           {data.Data(), data.Data() + data.ElementLength()});
      session_->add_pending(info.Env(), 1);
      return Napi::Number::New(info.Env(), call);
    });
  }

  Napi::Value release(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      session_->engine().release(number_argument(info[0], "pin"));
      return info.Env().Undefined();
    });
  }

  static uint32_t number_argument(const Napi::Value& value, const char* name) {
    return static_cast<uint32_t>(integer_of(value, name, 0, UINT32_MAX));
  }
  static int32_t page_argument(const Napi::Value& value) {
    return static_cast<int32_t>(integer_of(value, "page", 0, kMostCount));
  }

  Napi::Value dispose(const Napi::CallbackInfo& info) {
    session_->dispose(info.Env());
    return info.Env().Undefined();
  }

  std::shared_ptr<Session> session_;
  std::shared_ptr<Grammars> grammars_;  // null: the model has no tokenizer
};

}  // namespace

Napi::Function define_model(Napi::Env env) { return ModelObject::define(env); }

}  // namespace chatglm::addon
