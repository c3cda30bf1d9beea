"""datatrove's own tokenizing pipeline, without its shuffle. Runs in datatrove's environment.

python run_datatrove.py INPUT_FOLDER TOKENIZER EOS OUT_FOLDER PROCESSES
"""

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer


def main() -> None:
    folder, tokenizer, eos, out, processes = sys.argv[1:]
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder, glob_pattern="*.jsonl.zst"),
            DocumentTokenizer(
                f"{out}/tokens",
                tokenizer_name_or_path=tokenizer,
                eos_token=eos,
                shuffle_documents=False,
            ),
        ],
        tasks=int(processes),
        workers=int(processes),
        logging_dir=f"{out}/logs",
    ).run()


if __name__ == "__main__":
    main()
