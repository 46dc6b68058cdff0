package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

const service = "inference.GRPCInferenceService"

// mesh is a connection and what reflection said about the messages.
type mesh struct {
	connection *grpc.ClientConn
	service    protoreflect.ServiceDescriptor
}

// describe asks the server for the files of the inference service.
func describe(ctx context.Context, connection *grpc.ClientConn) (*mesh, error) {
	stream, err := grpc_reflection_v1.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
	if err != nil {
		return nil, err
	}
	question := &grpc_reflection_v1.ServerReflectionRequest{
		MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service},
	}
	if err := stream.Send(question); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	files := &descriptorpb.FileDescriptorSet{}
	for _, bytes := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
		file := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(bytes, file); err != nil {
			return nil, err
		}
		files.File = append(files.File, file)
	}
	registry, err := protodesc.NewFiles(files)
	if err != nil {
		return nil, err
	}
	found, err := registry.FindDescriptorByName(service)
	if err != nil {
		return nil, err
	}
	return &mesh{connection, found.(protoreflect.ServiceDescriptor)}, nil
}

func (m *mesh) method(name string) protoreflect.MethodDescriptor {
	return m.service.Methods().ByName(protoreflect.Name(name))
}

// request returns a ModelInferRequest whose one input "x" holds FP32 values in raw form.
func (m *mesh) request(model, id string, shape string, raw []byte) *dynamicpb.Message {
	message := dynamicpb.NewMessage(m.method("ModelInfer").Input())
	json := fmt.Sprintf(`{"id": %q, "inputs": [{"name": "x", "datatype": "FP32", "shape": [%s]}]}`, id, shape)
	if err := protojson.Unmarshal([]byte(json), message); err != nil {
		panic(err)
	}
	message.Set(field(message, "model_name"), protoreflect.ValueOfString(model))
	message.Mutable(field(message, "raw_input_contents")).List().Append(protoreflect.ValueOfBytes(raw))
	return message
}

// iris returns a request for the kind of one flower; the answer is label 2.
func (m *mesh) iris(id string) *dynamicpb.Message {
	return m.request("iris", id, "1, 4", floats(6.7, 3.0, 5.2, 2.3))
}

// infer calls ModelInfer.
func (m *mesh) infer(ctx context.Context, request proto.Message, options ...grpc.CallOption) (*dynamicpb.Message, error) {
	answer := dynamicpb.NewMessage(m.method("ModelInfer").Output())
	return answer, m.connection.Invoke(ctx, "/"+service+"/ModelInfer", request, answer, options...)
}

// stream opens a ModelStreamInfer.
func (m *mesh) stream(ctx context.Context) (grpc.ClientStream, error) {
	both := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	return m.connection.NewStream(ctx, both, "/"+service+"/ModelStreamInfer")
}

// next receives one message of a stream and returns its response, an error message of the model as an error.
func (m *mesh) next(stream grpc.ClientStream) (protoreflect.Message, error) {
	message := dynamicpb.NewMessage(m.method("ModelStreamInfer").Output())
	if err := stream.RecvMsg(message); err != nil {
		return nil, err
	}
	if text := message.Get(field(message, "error_message")).String(); text != "" {
		return nil, fmt.Errorf("the stream answers %q", text)
	}
	return message.Get(field(message, "infer_response")).Message(), nil
}

func field(message protoreflect.Message, name string) protoreflect.FieldDescriptor {
	return message.Descriptor().Fields().ByName(protoreflect.Name(name))
}

func text(message protoreflect.Message, name string) string {
	return message.Get(field(message, name)).String()
}

// output returns the raw contents of the first output.
func output(message protoreflect.Message) []byte {
	contents := message.Get(field(message, "raw_output_contents")).List()
	if contents.Len() == 0 {
		return nil
	}
	return contents.Get(0).Bytes()
}

// isIris tells what is wrong with the answer to an iris request.
func isIris(message protoreflect.Message, id string) error {
	if got := text(message, "id"); got != id {
		return fmt.Errorf("expected the answer to %q, got that to %q", id, got)
	}
	if got := output(message); len(got) != 8 || binary.LittleEndian.Uint64(got) != 2 {
		return fmt.Errorf("expected label 2, got %v", got)
	}
	return nil
}

func floats(values ...float32) []byte {
	var raw []byte
	for _, value := range values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(value))
	}
	return raw
}
