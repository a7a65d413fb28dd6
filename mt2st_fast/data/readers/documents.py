"""Documents from tables with a column of text and columns of labels, whatever kind of file the tables come from."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from mt2st_fast.data.corpus import FileRead, ReadRecord, Splits
from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.files import find_splits
from mt2st_fast.data.readers.request import ReadRequest, TaskRequest, Unlabelled, choose_tasks
from mt2st_fast.data.readers.table import Columns, Table, aligned, check_texts, is_number, text_column
from mt2st_fast.data.readers.table_rows import Rows
from mt2st_fast.data.text.tokenizers import lowered_words_and_marks
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import counted, in_any_case, listed


def read_documents(
    request: ReadRequest, kind: str, extensions: Collection[str], read_table: Callable[[Path], Table]
) -> Splits:
    """Read every column but the text as a task; a row and a unit is a document.

    kind: the reader's name. extensions: of its files in a folder. A task has classes, unless asked for as
    `name:regression` or `name:multilabel` (labels separated by | or ;). An empty cell is a missing label. By default
    the first column after the text that looks like classes is the main task (or one before the text if there is none),
    and the others are auxiliary, except those that look like ids, numbers, text or lists (or have one class only).
    Columns are found by their names, in any case and order.
    """
    where = str(request.path)
    files = find_splits(request.path, extensions, request.measured)
    found = {part: read_table(path) for part, path in files.items()}
    first = next(iter(found.values()))  # the training table, if there is one
    tables = {part: aligned(table, first) for part, table in found.items()}
    columns = Columns(tables, text_column(first, request.text_column))
    request = _in_the_headers_case(request, columns)
    default_auxiliary = [task for task in columns.names if task not in columns.unfit]
    main, auxiliary = choose_tasks(request, columns.names, columns.default_main, default_auxiliary, where)
    requests = [main, *auxiliary]
    for table in tables.values():
        _check_lists(requests, table)
    for table in tables.values():
        _check_columns(table, columns.text, main.name)
        check_texts(columns.text, table)
    sections = {
        part: Section(
            [lowered_words_and_marks(text) for text in table.column(columns.text)],
            {task.name: [[cell] for cell in columns.cells(part, task)] for task in requests},
        )
        for part, table in tables.items()
    }
    if not any(next(iter(sections.values())).units):
        raise InputError(
            f"{first.path}: column {columns.text!r} has no words in any row; choose the text column with --text-column"
        )
    return assemble(
        f"{kind}:{where}",
        complete_splits(sections, where, request.measured),
        {task.name: task.kind for task in requests},
        "document",
        main.name,
        [task.name for task in auxiliary],
        [*_notes_on_tasks(request, columns, requests), *_notes_on_files(tables, auxiliary)],
        _record(tables, columns, requests),
    )


def texts_of(request: ReadRequest, rows: Rows, between_cells: str = "") -> Unlabelled:
    """Return the texts of all rows, also of those without any cell: an answer finds its row by its place."""
    table = Table(
        request.path,
        rows.header,
        rows.rows,
        rows.line_numbers,
        rows.left_out,
        between_cells=between_cells,
        lists=frozenset(rows.lists),
    )
    name = text_column(table, request.text_column, needs_labels=False)
    return Unlabelled([text.strip() for text in table.column(name)], rows.notes)


def _in_the_headers_case(request: ReadRequest, columns: Columns) -> ReadRequest:
    """Return the request with the columns' names as spelled in the header. Raises InputError for the text as a task."""

    def named(task: TaskRequest) -> TaskRequest:
        name = in_any_case(task.name, columns.names)
        if name is None and in_any_case(task.name, [columns.text]):
            raise InputError(
                f"column {columns.text!r} is the text column and cannot be a task; choose the text column with "
                "--text-column"
            )
        return task if name is None else replace(task, name=name)

    main = None if request.main is None else named(request.main)
    auxiliary = None if request.auxiliary is None else tuple(map(named, request.auxiliary))
    return replace(request, main=main, auxiliary=auxiliary)


def _check_columns(table: Table, text: str, main: str) -> None:
    for name, what in ((text, "the text"), (main, "the main task")):
        if name not in table.header:
            raise InputError(
                f"{table.path}: has no column {name!r}, which is {what} in the training file; add the column or "
                "remove the file"
            )


def _check_lists(tasks: Sequence[TaskRequest], table: Table) -> None:
    for task in tasks:
        if task.name in table.lists and task.kind != "labels":
            raise InputError(f"{table.path}: {task.name!r} has lists of labels; use {task.name}:multilabel")


def _notes_on_tasks(request: ReadRequest, columns: Columns, tasks: Sequence[TaskRequest]) -> list[str]:
    """Return notes on what the reader chose by itself, and on cells that may have another meaning."""
    notes, main = [], tasks[0].name
    if empty := columns.read_as(columns.text, "").empty:
        notes.append(
            f"column {columns.text!r}: {counted(empty, 'cell is', 'cells are')} empty, so "
            f"{counted(empty, 'document has', 'documents have')} no words"
        )
    if request.main is None and main != columns.behind_text:
        as_lists = f", or --main {columns.behind_text}:multilabel" * columns.holds_lists(columns.behind_text)
        notes.append(
            f"{_why_unfit(columns, columns.behind_text)}, so the main task is {main!r}; use --label-column to choose "
            f"another one{as_lists}"
        )
    if request.auxiliary is None:
        notes += [
            f"{_why_unfit(columns, task)}, so it is not used as an auxiliary task"
            f"{f' (--aux {task}:multilabel)' if columns.holds_lists(task) else ''}"
            for task in columns.unfit
            if task != main
        ]
    return [*notes, *chain.from_iterable(_notes_on_cells(columns, task) for task in tasks)]


def _why_unfit(columns: Columns, name: str) -> str:
    n = len(columns.values(name))
    held = "lists" if columns.holds_lists(name) else f"{n} class{'' if n == 1 else 'es'}"
    return f"column {name!r} has {held}"


_FOR_COMMAS = "if commas separate labels, write | in their place"


def _notes_on_cells(columns: Columns, task: TaskRequest) -> Iterator[str]:
    """Yield notes on cells of a task's column that may have another meaning."""
    name, kind, values = task.name, task.kind, columns.values(task.name)
    if kind == "classes" and name in columns.unfit and all(map(is_number, values)) and len(values) > 1:
        yield (
            f"column {name!r} has {len(values)} classes, all of them numbers; to predict the number itself, use "
            f"{name}:regression"
        )
    if kind == "classes" and columns.seems_to_hold_sets(name):
        yield (
            f"column {name!r}: each of the {len(values)} different cells is one class, | or ; included; if these signs "
            f"separate labels, use {name}:multilabel"
        )
    elif kind == "classes" and columns.seems_to_hold_sets_by_commas(name):
        yield (
            f"column {name!r}: each of the {len(values)} different cells is one class, commas included; {_FOR_COMMAS} "
            f"and use {name}:multilabel"
        )
    if kind == "labels" and columns.holds_single_labels(name):
        fix = f"; {_FOR_COMMAS}" if columns.seems_to_hold_sets_by_commas(name) else ""
        yield f"column {name!r}: no cell has | or ;, which separate labels, so each cell is one label{fix}"
    if kind == "labels" and (empty := columns.read_as(name, "").empty):
        yield (
            f"column {name!r}: {counted(empty, 'cell is', 'cells are')} empty, which is read as labels that are not "
            "known, not as rows without any; give those rows a label of their own, such as none"
        )
    if kind == "values" and columns.has_decimal_commas(name):
        yield f"column {name!r}: commas are read as decimal points (1,5 is 1.5)"
    if not (nan := columns.read_as(name, "").nan):
        return
    cells = f"column {name!r}: {' or '.join(columns.marks_of_nothing(name))} in {counted(nan, 'cell')}"
    if kind == "values":
        yield f"{cells} counts as unlabelled"
    elif columns.nan_is_none(name):
        yield f"{cells} counts as unlabelled; if it is a class, give it another name"
    else:
        yield f"{cells} is treated as a class; empty those cells if they have no label"


def _notes_on_files(tables: Mapping[str, Table], auxiliary: Sequence[TaskRequest]) -> list[str]:
    notes = [f"{table.path.name}: {note}" for table in tables.values() for note in table.notes]
    for table in tables.values():
        if missing := [task.name for task in auxiliary if task.name not in table.header]:
            notes.append(
                f"{table.path.name}: has no column {listed(missing)}, so it has no labels for this task"
            )
    return notes


def _record(tables: Mapping[str, Table], columns: Columns, tasks: Sequence[TaskRequest]) -> ReadRecord:
    files = tuple(
        FileRead(str(table.path), part, len(table.rows), len(table.rows), table.left_out)
        for part, table in tables.items()
    )
    place = {task.name: "auxiliary task" for task in tasks} | {tasks[0].name: "main task"}
    of_kind = {task.name: f"{place[task.name]}, {task.kind}" for task in tasks}
    used = tuple(
        columns.read_as(name, "text" if name == columns.text else of_kind.get(name, "left out"))
        for name in (columns.text, *columns.names)
    )
    between = dict.fromkeys(table.between_cells for table in tables.values() if table.between_cells)
    understood = {"text column": columns.text}
    if between:
        understood["between cells"] = " or ".join(between)
    return ReadRecord(files, used, understood)
