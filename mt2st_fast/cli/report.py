"""`mt2st-fast report`: make the report of a run or of a comparison again from the files in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mt2st_fast.cli.paths import path_argument
from mt2st_fast.cli.terminal import plain_console, say
from mt2st_fast.errors import InputError
from mt2st_fast.folder_lock import holding
from mt2st_fast.model_folder import RUN_CONFIG
from mt2st_fast.runs.comparison_report import COMPARISON, write_comparison_report
from mt2st_fast.runs.comparison_report import REPORT_FILES as OF_A_COMPARISON
from mt2st_fast.runs.comparison_state import FILE as STATE_FILE
from mt2st_fast.runs.report import REPORT_FILES as OF_A_RUN
from mt2st_fast.runs.report import pictures_of, write_report
from mt2st_fast.runs.run_facts import FACTS
from mt2st_fast.spelling import in_shell


def report(
    folder: Annotated[
        Path, path_argument("output folder of `train` or `compare` (their --out)", metavar="DIR")
    ],
) -> None:
    """Regenerate the report and pictures of a run or comparison without training.

    Use it after an upgrade, or if report files were lost. A run is read from history.jsonl and facts.json, a comparison
    from compare.json.
    """
    is_comparison = _is_comparison(folder)
    with holding(folder):
        try:
            names: tuple[str, ...]
            if is_comparison:
                write_comparison_report(folder)
                names = OF_A_COMPARISON
            else:
                names = (
                    *(name for name in OF_A_RUN if not name.endswith(".png")),
                    *pictures_of(write_report(folder)),
                )
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise InputError(
                f"{folder}: the files to make the report from are damaged, or were written by another version "
                f"({type(error).__name__}: {error}); {'compare' if is_comparison else 'train'} again"
            ) from error
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written ({error.strerror}); copy it to a writable place"
            ) from None
    say(plain_console(), f"Written to {folder}: {', '.join(names)}")


def _is_comparison(folder: Path) -> bool:
    """Whether the folder has a finished comparison, not a run. Raises InputError if it has neither, or both."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; pass a folder that train or compare has written to")
    has_run, has_comparison = ((folder / name).exists() for name in (FACTS, COMPARISON))
    if has_run and has_comparison:
        raise InputError(
            f"{folder}: contains a run and a comparison, which both write report.html; move {COMPARISON} to another "
            "folder"
        )
    if has_run or has_comparison:
        return has_comparison
    if (folder / STATE_FILE).exists():
        raise InputError(
            f"{folder}: the comparison is not finished; finish it with: mt2st-fast compare --resume --out "
            f"{in_shell(folder)}"
        )
    if (folder / RUN_CONFIG).exists():
        raise InputError(
            f"{folder}: the run is not finished; finish it with: mt2st-fast train --resume --out {in_shell(folder)}"
        )
    raise InputError(
        f"{folder}: is not a run: it has neither {FACTS} nor {COMPARISON}; pass a folder that train or compare has "
        "written to"
    )
