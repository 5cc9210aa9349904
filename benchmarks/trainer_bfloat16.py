"""``trainer.py`` with all sides in bfloat16, which is what ``precision: auto`` chooses on CPUs with AMX.

python benchmarks/trainer_bfloat16.py [--steps 12] [--rounds 3] [--against trl ms-swift llamafactory]
"""

import trainer

RESULTS = trainer.RESULTS["bfloat16"]

if __name__ == "__main__":
    trainer.main("bfloat16")
