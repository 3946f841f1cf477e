"""A CUDA without a GPU, in which the CUDA provider of the real onnxruntime-gpu wheel opens, places and runs graphs.

Its libraries have every function that the provider asks for. Memory and copies are real; kernels, cuBLAS and cuDNN
compute nothing, so that results are right in shape alone.
"""
