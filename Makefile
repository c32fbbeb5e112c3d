# Two commands do everything, set-up included: `make demo` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint types check weights weights-mind weights-judge study study-smoke study-mind study-generators compare-zoo claims scores cards figures bench clean

demo: $(READY)  ## measure the embedded IBQ tokenizer on 4,000 images of Fashion-MNIST
	$(BIN)/latentlab analyze --tokenizer ibq --limit 4000

test: $(READY)  ## the whole test suite: two processes of one thread beat one of two
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

weights: $(READY)  ## train the embedded tokenizers anew, two at a time
	$(BIN)/python -m latentlab.tokenizers.embedded train

weights-mind: $(READY)  ## train the embedded MIND anew, over an hour on two cores; an interrupted one continues
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=2 -m latentlab train mind --config mind-fashion --out runs/mind-fashion
	cp runs/mind-fashion/mind.safetensors mind/weights/mind_fashion32.safetensors

weights-judge: $(READY)  ## train the judge of Fashion-MNIST images anew, about 5 minutes
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m latentlab.quality.fashion_classifier train

study-smoke: $(READY)  ## the smallest study: two tokenizers, about two minutes
	$(BIN)/latentlab study run studies/diffusability/smoke.yaml --out runs/study-smoke

study: $(READY)  ## the reference study of tokenizers -> studies/diffusability; about 12 hours on two cores, resumed by the same command
	$(BIN)/latentlab study run studies/diffusability/fashion.yaml --out runs/study-fashion
	for file in results.csv columns.json analysis.json plan.yaml figures; do cp -r runs/study-fashion/$$file studies/diffusability/ || exit 1; done

compare-zoo: $(READY)  ## the embedded tokenizers beside each other -> studies/embedded; about half an hour
	$(BIN)/latentlab compare --tokenizers ae,kl,eq,vavae,lmr,vq,ibq,maetok --limit 4000 --set ifid.extractor=fashion-classifier --set reconstruction.extractor=fashion-classifier --out runs/compare-embedded
	mkdir -p studies/embedded/figures && cp runs/compare-embedded/comparison.csv runs/compare-embedded/summary.md studies/embedded/
	cp runs/compare-embedded/figures/*.png studies/embedded/figures/
	$(BIN)/latentlab compare --tokenizers ae,kl,eq,vavae,lmr,vq,ibq --limit 4000 --metrics equivariance --set equivariance.normalize=true --out runs/compare-standardised
	grep -v '^!' runs/compare-standardised/summary.md > studies/embedded/equivariance_standardised.md
	cp runs/compare-standardised/comparison.csv studies/embedded/equivariance_standardised.csv

claims: $(READY)  ## what the committed results say about each published claim -> studies/CLAIMS.md
	$(BIN)/latentlab claims

study-mind: $(READY)  ## the committed ablations of MIND -> studies/mind_ablations
	$(BIN)/latentlab ablate hypersphere --out runs/mind_ablations/hypersphere --set samples=500 --set sample.steps=25 --set train.optimiser.steps=600
	$(BIN)/latentlab ablate eta --out runs/mind_ablations/eta --set samples=500 --set sample.steps=25
	for name in hypersphere eta; do for file in table.md table.csv results.json figures; do cp -r runs/mind_ablations/$$name/$$file studies/mind_ablations/$$name/ || exit 1; done; done

study-generators: $(READY)  ## the committed comparison of generators -> studies/generators; about an hour on two cores
	$(BIN)/latentlab study generators --out runs/study-generators
	mkdir -p studies/generators && for file in table.md points.csv results.json figures; do cp -r runs/study-generators/$$file studies/generators/ || exit 1; done

scores: $(READY)  ## reconstruction scores of the embedded tokenizers -> docs/embedded_tokenizers.md
	$(BIN)/python -m latentlab.tokenizers.embedded scores

cards: $(READY)  ## what every measurement means -> docs/metrics.md; all tokenizers -> docs/tokenizers.md
	$(BIN)/python docs/make_cards.py
	$(BIN)/python docs/make_tokenizers.py

figures: $(READY)  ## the pictures of the README
	$(BIN)/python docs/make_figures.py

bench: $(READY)  ## every speed and memory claim, ours beside the peer
	for file in viv sec lnc gmm spatial frechet ifid uniformity encoding everything mind_training mind_sampling mind_flops generators frechet_statistics manifold_metrics correlation; do $(BIN)/python benchmarks/$$file.py || exit 1; done

clean:
	rm -rf $(VENV) runs

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'latentlab needs Python 3.11 or newer: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
