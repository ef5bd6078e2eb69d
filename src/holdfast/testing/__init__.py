"""Conformance checks for systems and tasks of one's own: run them before anything else.

    from holdfast.testing import check_system, check_task
    check_system(MySystem())
    check_task(MyTask())

Each raises one `ConformanceError` at the first thing that is wrong, and says what it saw and what is right.
"""

from holdfast.testing.functions import ConformanceError
from holdfast.testing.systems import check_system
from holdfast.testing.tasks import TaskConformance, check_declaration, check_task

__all__ = ["ConformanceError", "TaskConformance", "check_declaration", "check_system", "check_task"]
