# Two commands do everything, set-up included: `make demo` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

GRIDS := components embedding-noise eta guidance-space hypersphere released-vs-paper residual sampling schedules stages
STUDY := runs/study-fashion$(if $(FRESH),-fresh)
CELLS := studies/diffusability/cells
RESULTS := table.md table.csv results.json figures

.PHONY: demo test lint types check gallery weights weights-mind weights-judge study study-archive study-smoke study-mind study-generators study-interval study-masking study-collapse compare-zoo claims scores cards figures bench clean

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

weights-judge: $(READY)  ## train the judge of Fashion-MNIST images anew, about 4 minutes
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m latentlab.quality.fashion_classifier train

study-smoke: $(READY)  ## the smallest study: one tokenizer and its control, a few minutes
	$(BIN)/latentlab study run studies/diffusability/smoke.yaml --out runs/study-smoke

study: $(READY)  ## the reference study of tokenizers -> studies/diffusability, from the cells kept there (FRESH=1: from nothing, 8 to 18 hours of two cores)
	$(BIN)/latentlab study run studies/diffusability/fashion.yaml --out $(STUDY) $(if $(FRESH),,$(if $(wildcard $(CELLS)/*.zip),--archive $(CELLS)))
	$(BIN)/latentlab study archive $(STUDY) --to $(CELLS)
	for file in results.csv columns.json analysis.json plan.yaml figures; do cp -r $(STUDY)/$$file studies/diffusability/ || exit 1; done

study-archive: $(READY)  ## keep the cells that an interrupted `make study` (FRESH=1: that one) has finished -> studies/diffusability/cells
	$(BIN)/latentlab study archive $(STUDY) --to $(CELLS)

compare-zoo: $(READY)  ## the embedded tokenizers beside each other -> studies/embedded; about half an hour
	$(BIN)/latentlab compare --tokenizers ae,kl,eq,vavae,lmr,vq,ibq,maetok --limit 4000 --set ifid.extractor=fashion-classifier --set reconstruction.extractor=fashion-classifier --out runs/compare-embedded
	mkdir -p studies/embedded/figures && cp runs/compare-embedded/comparison.csv runs/compare-embedded/summary.md studies/embedded/
	cp runs/compare-embedded/figures/*.png studies/embedded/figures/
	$(BIN)/latentlab compare --tokenizers ae,kl,eq,vavae,lmr,vq,ibq --limit 4000 --metrics equivariance --set equivariance.normalize=true --out runs/compare-standardised
	grep -v '^!' runs/compare-standardised/summary.md > studies/embedded/equivariance_standardised.md
	cp runs/compare-standardised/comparison.csv studies/embedded/equivariance_standardised.csv

claims: $(READY)  ## what the committed results say about each published claim -> studies/CLAIMS.md
	$(BIN)/latentlab claims

study-mind: $(READY)  ## the ten ablations of MIND, three seeds -> studies/mind_ablations; an interrupted one continues
	for name in $(GRIDS); do $(BIN)/latentlab ablate $$name --seeds 3 --runs runs/mind_ablations/trained --out runs/mind_ablations/$$name || exit 1; done
	for name in $(GRIDS); do mkdir -p studies/mind_ablations/$$name && cd runs/mind_ablations/$$name && cp -r $(RESULTS) ../../../studies/mind_ablations/$$name/ && cd ../../.. || exit 1; done

study-generators: $(READY)  ## MIND and its baselines at equal compute, three seeds -> studies/generators
	$(BIN)/latentlab study generators --seeds 3 --out runs/study-generators
	mkdir -p studies/generators && cd runs/study-generators && cp -r table.md points.csv results.json figures ../../studies/generators/

study-masking: $(READY)  ## masked generators by their schedule, three seeds -> studies/masking_schedules
	$(BIN)/latentlab study generators --config studies/masking_schedules/comparison.yaml --seeds 3 --out runs/masking_schedules
	cd runs/masking_schedules && cp -r table.md points.csv results.json figures ../../studies/masking_schedules/

study-interval: $(READY)  ## guidance in an interval of sampling, three draws -> studies/guidance_interval
	$(BIN)/latentlab ablate studies/guidance_interval/grid.yaml --seeds 3 --out runs/guidance_interval
	cd runs/guidance_interval && cp -r $(RESULTS) ../../studies/guidance_interval/

study-collapse: $(READY)  ## the bottleneck study, eight images and three seeds with controls -> studies/collapse
	$(BIN)/latentlab collapse --images 8 --seeds 3 --controls --out runs/collapse
	mkdir -p studies/collapse/figures && cd runs/collapse && cp summary.md results.json ../../studies/collapse/ && cp figures/*.png ../../studies/collapse/figures/

scores: $(READY)  ## reconstruction scores of the embedded tokenizers -> docs/embedded_tokenizers.md
	$(BIN)/python -m latentlab.tokenizers.embedded scores

cards: $(READY)  ## what every measurement means -> docs/metrics.md; all tokenizers -> docs/tokenizers.md; all settings
	$(BIN)/python docs/make_cards.py
	$(BIN)/python docs/make_tokenizers.py
	$(BIN)/python docs/make_settings.py

figures: $(READY)  ## the pictures of the README
	$(BIN)/python docs/make_figures.py

gallery: $(READY)  ## the page of all pictures of the studies -> figures/gallery
	$(BIN)/python docs/make_gallery.py

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
