"""Path from an ONNX graph to fixed-point programs, to RTL, and through synthesis and routing.

Programs are da4ml's (distributed arithmetic, in which products by constants become shifts and
additions): Sun et al., da4ml, arXiv:2507.04535.
"""
