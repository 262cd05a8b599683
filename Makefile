# Everything from a bare clone: each target makes the environment that it needs. A second call reuses it.
PYTHON ?= python3
# A fresh `pip install` brings the newest TransformerLens; .venv-tl3 has the last release with both of its classes,
# .venv-tl2 the oldest that is supported, which needs older companions.
TL_NEW := transformer_lens==4.3.0
TL_OLD := transformer_lens==3.9.0
TL_OLDEST := transformer_lens==2.18.0
CONSTRAINTS := constraints.txt
STAMP := .installed-$(shell cat pyproject.toml constraints.txt constraints-tl2.txt | cksum | cut -d' ' -f1)

# What is never imported need not be compiled (40 s of an installation).
PIP := pip install --quiet --disable-pip-version-check --no-compile
PURELIB := -c "import sysconfig; print(sysconfig.get_path('purelib'))"

# What tests look at pages with, in .venv/page: axe-core, as npm packs it, beside Debian's chromium. Nothing else fetches.
AXE := 4.14.1
PAGE := .venv/page/.axe-$(AXE)

# Compiled modules are kept: pytest and jaxtyping rewrite tests and package once, not once in every process.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := -m pytest -q -n auto --dist worksteal
NOTEBOOKS := --nbmake --nbmake-timeout=600
EACH_RELEASE := hooked or each_release or not any_release

.PHONY: demo test test-fast test-all test-new test-old test-oldest test-lowest test-models lint docs pictures build release-check bench models clean

demo: .venv/$(STAMP)
	.venv/bin/tl-subvalues trace "The capital of France is" --target " Paris"

test: test-new test-old

test-all: test test-oldest

# Under a minute on two cores: two cases of each quick test; shapes and types, whose checks take as long again, are left
# to test-new.
test-fast: .venv/$(STAMP)
	.venv/bin/python $(PYTEST) -p no:nbmake -o addopts="--strict-markers --strict-config" --cases=2 -m "not slow"

# Everything; what the host calls deprecated where the package calls it is an error.
test-new: .venv/$(STAMP) $(PAGE)
	.venv/bin/python $(PYTEST) --deprecations=errors $(NOTEBOOKS) demos tests

# What may differ in an older release: HookedTransformer, architectures, hooks, loading; no shapes but those of
# HookedTransformer, and the one notebook about TransformerLens itself.
test-old: .venv-tl3/$(STAMP)
	.venv-tl3/bin/python $(PYTEST) --shapes=hooked -m "$(EACH_RELEASE)" $(NOTEBOOKS) demos/beside_transformer_lens.ipynb tests

test-oldest: .venv-tl2/$(STAMP)
	.venv-tl2/bin/python $(PYTEST) $(NOTEBOOKS) demos tests

# The lowest versions that pyproject.toml allows, as uv resolves them: with TransformerLens 2.18, quick tests only.
test-lowest: .venv-lowest/$(STAMP)
	.venv-lowest/bin/python $(PYTEST) --shapes=hooked -m "not slow" tests

# Real models against Hugging Face's and brute force; Gemma 3 270M takes part once demos/gemma_3_270m.py has fetched it.
test-models: .venv/$(STAMP)
	.venv/bin/python -m pytest -q tests/real_models.py

lint: .venv/$(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The site, in site/: open site/index.html, no server needed.
docs: .venv/$(STAMP)
	.venv/bin/python -m sphinx -W --keep-going -q -b html docs site

# The pictures of README and site.
pictures: .venv/$(STAMP) $(PAGE)
	.venv/bin/python docs/make_pictures.py

build: .venv/$(STAMP)
	rm -rf dist
	.venv/bin/python -m build --outdir dist .

# What is to be released, made and checked as users get it; after `.ci/run`. Downloads three releases of TransformerLens.
release-check: .venv/$(STAMP) .venv-twine/bin/twine .venv-cff/bin/cffconvert
	test -z "$$(git status --porcelain)" || { echo "commit first: the tree is not clean"; exit 2; }
	.venv-cff/bin/cffconvert --validate
	$(MAKE) build
	.venv/bin/python .ci/release_check.py dist
	.venv-twine/bin/twine check --strict dist/*
	.ci/wheel-beside $(subst transformer_lens==,,$(TL_NEW)) constraints.txt
	.ci/wheel-beside $(subst transformer_lens==,,$(TL_OLD)) constraints.txt
	.ci/wheel-beside $(subst transformer_lens==,,$(TL_OLDEST)) constraints-tl2.txt

# Tools of a release, each in an environment of its own: cffconvert asks for older companions than anything else.
.venv-twine/bin/twine:
	$(PYTHON) -m venv .venv-twine
	.venv-twine/bin/python -m $(PIP) twine

.venv-cff/bin/cffconvert:
	$(PYTHON) -m venv .venv-cff
	.venv-cff/bin/python -m $(PIP) cffconvert

bench: .venv/$(STAMP)
	.venv/bin/python benchmarks/run.py

# docs/models.md: every architecture, measured on every release.
models: .venv/$(STAMP) .venv-tl3/$(STAMP) .venv-tl2/$(STAMP)
	.venv/bin/python docs/make_models.py
	.venv-tl3/bin/python docs/make_models.py
	.venv-tl2/bin/python docs/make_models.py

.venv/$(STAMP): TL := $(TL_NEW)
.venv-tl2/$(STAMP): TL := $(TL_OLDEST)
.venv-tl2/$(STAMP): CONSTRAINTS := constraints-tl2.txt
.venv/$(STAMP) .venv-tl2/$(STAMP):
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	# torch by pip, which may have a build of it at hand where uv does not look; all else by uv, in a fifth of the time,
	# or by pip again, where an index is one that only pip is told of.
	$(@D)/bin/python -m $(PIP) -c $(CONSTRAINTS) torch uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python -c $(CONSTRAINTS) "$(TL)" -e ".[all]" || \
	  $(@D)/bin/python -m $(PIP) -c $(CONSTRAINTS) "$(TL)" -e ".[all]"
	rm -f $(@D)/.installed-*
	touch $@

# Its own TransformerLens, what that asks for and .venv has not, and .venv's packages behind them.
.venv-tl3/$(STAMP): .venv/$(STAMP)
	$(PYTHON) -m venv --clear $(@D)
	echo "import site; site.addsitedir('$$(.venv/bin/python $(PURELIB))')" > $$($(@D)/bin/python $(PURELIB))/zz_beside.pth
	$(@D)/bin/python -m $(PIP) -c $(CONSTRAINTS) "$(TL_OLD)" -e ".[all]"
	touch $@

# What torch needs is uv's to resolve here.
.venv-lowest/$(STAMP): TL := $(TL_OLDEST)
.venv-lowest/$(STAMP):
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m $(PIP) --no-deps -c $(CONSTRAINTS) torch uv
	{ sed -n '/^torch==/p' $(CONSTRAINTS); echo "$(TL)"; } > $(@D)/known.txt
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution lowest-direct \
	  -c $(@D)/known.txt -e ".[demo,plots,graph,mcp,explore,widget,ray,dev]"
	rm -f $(@D)/.installed-*
	touch $@

$(PAGE): .venv/$(STAMP)
	test -x /usr/bin/chromium || { apt-get update && apt-get install -y --no-install-recommends chromium; }
	command -v npm > /dev/null || { apt-get update && apt-get install -y --no-install-recommends npm; }
	rm -rf $(@D) && mkdir -p $(@D)
	cd $(@D) && npm pack --silent axe-core@$(AXE) && tar -xzf axe-core-$(AXE).tgz --strip-components=1 package/axe.min.js
	touch $@

clean:
	rm -rf .venv .venv-tl3 .venv-tl2 .venv-lowest .venv-twine .venv-cff dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
