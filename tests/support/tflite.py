"""A TFLite file of one dense layer, written without TensorFlow."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl


def write_dense(path, weights):
    """Write y = W x for weights (dim, window): input (1, window), output (1, dim)."""
    model = tfl.ModelT()
    model.version = 3
    model.description = "test"
    code = tfl.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tfl.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    model.operatorCodes = [code]
    dim, window = weights.shape
    model.buffers = [tfl.BufferT() for _ in range(4)]
    model.buffers[2].data = np.frombuffer(weights.astype("<f4").tobytes(), np.uint8)
    graph = tfl.SubGraphT()
    graph.tensors = []
    for name, shape, buffer in (("x", [1, window], 1), ("w", [dim, window], 2), ("y", [1, dim], 3)):
        tensor = tfl.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = name, shape, buffer, tfl.TensorType.FLOAT32
        graph.tensors.append(tensor)
    op = tfl.OperatorT()
    op.inputs, op.outputs = [0, 1, -1], [2]
    op.builtinOptionsType = tfl.BuiltinOptions.FullyConnectedOptions
    op.builtinOptions = tfl.FullyConnectedOptionsT()
    graph.operators, graph.inputs, graph.outputs = [op], [0], [2]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
