"""Breaks one promise after the other in a copy of the repository, and sees whether a test notices.

`python -m tests.mutations [--sample N] [--seed S] [--limit SECONDS] [ID ...]`, in the folder of the repository.
"""

from .runner import main

raise SystemExit(main())
