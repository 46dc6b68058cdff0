// gRPC C++ with default options under the contract of programs.py beside this folder.

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr char kInfer[] = "/inference.GRPCInferenceService/ModelInfer";
constexpr char kStream[] = "/inference.GRPCInferenceService/ModelStreamInfer";
// Of a call that is waited for: only a lost answer takes so long.
constexpr std::chrono::seconds kPatience(60);
// After a call that failed, as a client that is not paced would spin while a server is away.
constexpr milliseconds kPenalty(50);
constexpr int kWrong = -1;

// The calls of one status that failed.
struct Failures {
  long count = 0;
  double first_s = 0;
  double last_s = 0;
  std::string text;
};

// What a run prints.
class Tally {
 public:
  void Done() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++calls_;
  }

  void GivenUp() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++given_up_;
  }

  void Failed(int code, std::string text) {
    std::lock_guard<std::mutex> lock(mutex_);
    const double now_s = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    Failures& these = failed_[code];
    if (these.count++ == 0) {
      std::replace_if(text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c == '"' || c == '\\'; }, '\'');
      these.first_s = now_s;
      these.text = text;
    }
    these.last_s = now_s;
  }

  void Print() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::printf("{\"calls\": %ld, \"given_up\": %ld, \"failed\": {", calls_, given_up_);
    const char* between = "";
    for (const auto& [code, these] : failed_) {
      std::printf("%s\"%d\": {\"count\": %ld, \"first_s\": %.3f, \"last_s\": %.3f, \"text\": \"%s\"}", between, code,
                  these.count, these.first_s, these.last_s, these.text.c_str());
      between = ", ";
    }
    std::printf("}}\n");
  }

 private:
  std::mutex mutex_;
  long calls_ = 0;
  long given_up_ = 0;
  std::map<int, Failures> failed_;
};

class Soak {
 public:
  explicit Soak(std::map<std::string, std::string> flags)
      : flags_(std::move(flags)),
        channel_(grpc::CreateChannel(Flag("address", ""), grpc::InsecureChannelCredentials())),
        infer_(kInfer, grpc::internal::RpcMethod::NORMAL_RPC, channel_),
        stream_(kStream, grpc::internal::RpcMethod::BIDI_STREAMING, channel_),
        answer_bytes_(std::stoul(Flag("answer-bytes", "0"))),
        burst_(std::stol(Flag("burst", "1"))),
        pause_(std::stol(Flag("pause-ms", "0"))),
        end_(Clock::now() + milliseconds(static_cast<long>(std::stod(Flag("seconds", "1")) * 1e3))) {
    std::ifstream file(Flag("request", ""), std::ios::binary);
    const std::string whole((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const grpc::Slice slice(whole);
    request_ = grpc::ByteBuffer(&slice, 1);
  }

  void Run() {
    std::vector<std::thread> all;
    for (int caller = 0; caller < std::stoi(Flag("callers", "1")); ++caller) {
      all.emplace_back(Flag("way", "unary") == "stream" ? &Soak::Converse : &Soak::Call, this);
    }
    const std::string gives_up = Flag("gives-up", "none");
    if (gives_up != "none") all.emplace_back(&Soak::GiveUp, this, gives_up == "deadline");
    for (std::thread& each : all) each.join();
    tally_.Print();
  }

 private:
  std::string Flag(const std::string& name, const std::string& by_default) const {
    const auto found = flags_.find(name);
    return found == flags_.end() ? by_default : found->second;
  }

  bool GoesOn() const { return Clock::now() < end_; }

  void Pause(long number) const {
    if (number % burst_ == 0 && pause_.count() > 0) std::this_thread::sleep_for(pause_);
  }

  void Fail(const grpc::Status& status) {
    tally_.Failed(status.error_code(), status.error_message());
    std::this_thread::sleep_for(kPenalty);
  }

  void Check(const grpc::ByteBuffer& answer) {
    if (answer.Length() >= answer_bytes_) {
      tally_.Done();
    } else {
      tally_.Failed(kWrong, "expected an answer of at least " + std::to_string(answer_bytes_) + " bytes, got " +
                                std::to_string(answer.Length()));
    }
  }

  grpc::Status Unary(grpc::ClientContext* context, grpc::ByteBuffer* answer) {
    return grpc::internal::BlockingUnaryCall(channel_.get(), infer_, context, request_, answer);
  }

  // Makes calls one after the other.
  void Call() {
    for (long number = 1; GoesOn(); ++number) {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + kPatience);
      grpc::ByteBuffer answer;
      const grpc::Status status = Unary(&context, &answer);
      if (status.ok()) {
        Check(answer);
      } else {
        Fail(status);
      }
      Pause(number);
    }
  }

  // Sends messages on one stream, one after the other, and opens another where that fails.
  void Converse() {
    while (GoesOn()) {
      grpc::ClientContext context;
      const std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
          grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(channel_.get(), stream_,
                                                                                                &context));
      for (long number = 1; GoesOn(); ++number) {
        grpc::ByteBuffer answer;
        if (!stream->Write(request_) || !stream->Read(&answer)) break;
        Check(answer);
        Pause(number);
      }
      stream->WritesDone();
      grpc::ByteBuffer more;
      if (stream->Read(&more)) tally_.Failed(kWrong, "expected the end of the stream, got a message");
      const grpc::Status status = stream->Finish();
      if (!status.ok()) Fail(status);
    }
  }

  // Begins calls and gives each up within 2 ms: ten a second, or by deadlines as fast as it goes.
  void GiveUp(bool by_deadline) {
    std::mt19937 chance(std::random_device{}());
    std::uniform_int_distribution<long> within(0, 2000);
    while (GoesOn()) {
      const microseconds soon(within(chance));
      grpc::ClientContext context;
      grpc::ByteBuffer answer;
      std::thread timer;
      if (by_deadline) {
        context.set_deadline(std::chrono::system_clock::now() + std::max(soon, microseconds(1000)));
      } else {
        timer = std::thread([&context, soon] {
          std::this_thread::sleep_for(soon);
          context.TryCancel();
        });
      }
      const grpc::Status status = Unary(&context, &answer);
      if (timer.joinable()) timer.join();
      const grpc::StatusCode code = status.error_code();
      if (status.ok() || code == grpc::StatusCode::CANCELLED || code == grpc::StatusCode::DEADLINE_EXCEEDED) {
        tally_.GivenUp();
      } else {
        tally_.Failed(code, status.error_message());
      }
      if (!by_deadline) std::this_thread::sleep_for(milliseconds(100));
    }
  }

  const std::map<std::string, std::string> flags_;
  const std::shared_ptr<grpc::Channel> channel_;
  const grpc::internal::RpcMethod infer_;
  const grpc::internal::RpcMethod stream_;
  const std::size_t answer_bytes_;
  const long burst_;
  const milliseconds pause_;
  const Clock::time_point end_;
  grpc::ByteBuffer request_;
  Tally tally_;
};

}  // namespace

int main(int count, char** words) {
  std::map<std::string, std::string> flags;
  for (int number = 1; number + 1 < count; number += 2) flags[std::string(words[number]).substr(2)] = words[number + 1];
  Soak(std::move(flags)).Run();
}
