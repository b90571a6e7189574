"""Count the words of many files on all cores, with a bar: `python many_files.py FOLDER`."""

import os
import sys
from pathlib import Path

from rich.progress import track  # or tqdm.tqdm

from cjm_worker_ext import BaseJobManager, WorkerConfig


def count_words(path):
    "The plugin: it runs in the worker processes."
    with open(path, encoding="utf-8") as file:
        return sum(len(line.split()) for line in file)


def main(folder):
    paths = [{"path": str(path)} for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    config = WorkerConfig(max_workers=os.cpu_count() or 1, job_timeout_seconds=60)
    words, failed = 0, []
    with BaseJobManager("files", plugins={"count": count_words}, worker_config=config).blocking() as manager:
        for job in manager.submit_many("count", paths, limit=100, progress=track):  # each as it ends
            if job.status == "completed":
                words += job.result
            else:  # a file that is no text, that takes too long, or that kills its worker, costs itself alone
                failed.append(f"{job.params['path']}: {job.error_type}: {job.error}")
    print(f"{words:,} words in {len(paths) - len(failed):,} files", *sorted(failed), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
