# Every target makes what it needs: the command's environment first (scripts/bootstrap.sh), then the others from their locks.
# ARGS goes to the command: make up ARGS="--http-port 9000", make test ARGS="-k gateway".
.DEFAULT_GOAL := help
.PHONY: help demo demo-lifecycle test secrets compose-test lint up down status protos locks bench support support-methods support-models support-served support-served-models

CLI := .martlet/envs/cli/bin/martlet

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Fine-tune a real model on real data, see that it got better, chat with it
	@scripts/bootstrap.sh
	@$(CLI) demo $(ARGS)

demo-lifecycle: ## Train, merge, quantize, measure every variant on the same rows, serve the one that is good enough
	@scripts/bootstrap.sh
	@$(CLI) demo-lifecycle $(ARGS)

test: ## All tests this machine can run
	@scripts/test.sh $(ARGS)

lint: ## Format, lint, types, layers, contracts, stub drift
	@scripts/lint.sh

up: ## Start the platform and leave it running in the background
	@scripts/bootstrap.sh
	@$(CLI) up --detach $(ARGS)

down: ## Stop it
	@scripts/bootstrap.sh
	@$(CLI) down

status: ## What runs
	@scripts/bootstrap.sh
	@$(CLI) status

protos: ## Generate the Python stubs of protos/
	@scripts/bootstrap.sh cli protos
	@scripts/gen_protos.sh .martlet/envs/protos/bin/python

locks: ## Write the locks that hold no ML library anew
	@scripts/bootstrap.sh
	@scripts/lock.sh .martlet/envs/cli/bin/uv

secrets: ## Secrets of a compose deployment, made once (.secrets)
	@scripts/secrets.sh

compose-test: ## The whole system in containers: up, used, scaled, broken, backed up, down (as root)
	@scripts/bootstrap.sh
	@.martlet/envs/cli/bin/python -m tests.e2e.run $(ARGS)

bench: ## Every benchmark; tables and JSON in benchmarks/
	@scripts/bench.sh $(ARGS)

support: ## Which quantization method works on which architecture: fills docs/support/quantization.md
	@scripts/bootstrap.sh cli dev trainer inference quantizer-bnb quantizer-llmcompressor quantizer-gguf quantizer-awq quantizer-gptqmodel
	@.martlet/envs/dev/bin/python benchmarks/support_quantization.py $(ARGS)

support-methods: ## Which recipe trains with which tuner: fills docs/support/methods.md
	@scripts/bootstrap.sh cli trainer
	@.martlet/envs/trainer/bin/python benchmarks/support_methods.py $(ARGS)

support-models: ## Which architectures train: fills docs/support/models.md
	@scripts/bootstrap.sh cli trainer
	@.martlet/envs/trainer/bin/python benchmarks/support_models.py $(ARGS)

support-served: ## What vLLM serves of each recipe's and tuner's result: fills docs/support/methods.md
	@scripts/bootstrap.sh cli trainer inference
	@.martlet/envs/trainer/bin/python benchmarks/support_served.py $(ARGS)

support-served-models: ## Which architectures vLLM serves, merged and by adapter: fills docs/support/models.md
	@scripts/bootstrap.sh cli trainer inference
	@.martlet/envs/trainer/bin/python benchmarks/support_served_models.py $(ARGS)
