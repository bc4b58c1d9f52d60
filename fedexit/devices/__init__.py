"""Describe devices, and choose the depth L_i of each by a policy. Start with `policy.depth_for`.

policy    the depth policy: the deepest exit that fits a device and its task
profiles  device classes, and the calibration of predicted memory by measured memory
dynamics  load, battery and faults by round
fleet     time and energy of local rounds on simulated devices
probe     measured memory and time of a client
export    one exit as a file of ONNX or TorchScript
"""
