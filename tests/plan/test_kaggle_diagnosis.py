import pytest

from outlast.plan.kaggle_diagnosis import Ended, describe, diagnose

KERNEL = 'Traceback (most recent call last):\n  File "script.py", line 9, in <module>\n'

CHECKED = """plants, preset t4

ERRORS: training would fail, or be worthless
  data.x: the labels of 9 images differ
      do:    mend labels.csv

WARNINGS: slower, dearer or worse than it could be
  cost.y: out of memory is near
1 errors, 1 warnings, 0 not checked, 3 notes; of 86 checks
outlast check ended with exit status 1; why stands above, and in /kaggle/working/plants.log
"""


@pytest.mark.parametrize(
    ("kind", "log", "message", "words"),
    [
        ("import", KERNEL + "ModuleNotFoundError: No module named 'smp'\n", "", "No module named 'smp'"),
        ("gpu_memory", KERNEL + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n", "", "2 GiB"),
        (
            "memory",
            "step 9\n",
            "Your notebook tried to allocate more memory than is available. It has restarted.",
            "step",
        ),
        ("memory", KERNEL + "RuntimeError: DataLoader worker (pid 9) is killed by signal: Killed.\n", "", "pid 9"),
        ("data", "error: no data found for plants\n  - $OUTLAST_DATA is not set\n", "", "no data found"),
        ("data", KERNEL + "FileNotFoundError: [Errno 2] No such file: '/kaggle/input/x/a.csv'\n", "", "a.csv"),
        ("disk", KERNEL + "OSError: [Errno 28] No space left on device\n", "", "Errno 28"),
        (
            "gpu",
            "RuntimeError: CUDA error: no kernel image is available for execution\n",
            "",
            "no kernel",
        ),
        ("internet", "urllib3.exceptions.NameResolutionError: Failed to resolve 'huggingface.co'\n", "", "huggingface"),
        ("outlast", "error: the split has no test images\n  What to do: give --data more\n", "", "no test images"),
        ("check", CHECKED, "", "data.x: the labels of 9 images"),
        ("broken", KERNEL + "ZeroDivisionError: division by zero\n", "", "ZeroDivisionError"),
        ("memory", KERNEL + "outlast train ended with exit status -9; why stands above\n", "", "status -9"),
        ("unknown", "epoch 1\nepoch 2\n", "", "epoch 2"),
    ],
)
def test_a_failure_is_named_with_its_lines_and_a_remedy(kind, log, message, words):
    found = diagnose(Ended("error", message, log))
    assert found.kind == kind
    assert any(words in line for line in found.excerpt)
    assert found.remedy and found.remedy in describe(found)


def test_only_what_may_pass_is_tried_again():
    assert diagnose(Ended("error", "", "")).again  # as when a machine is lost
    assert not diagnose(Ended("error", "", "epoch 1\n")).again
    assert not diagnose(Ended("error", "", KERNEL + "ImportError: no libGL.so.1\n")).again


def test_the_remedy_that_outlast_printed_is_taken():
    found = diagnose(Ended("error", "", "error: too small\n  What to do: give more images\n"))
    assert found.remedy == "give more images"


def test_a_session_at_its_limit_was_ended_by_it_whatever_its_log_says():
    log = "CUDA out of memory\nepoch 7\n"
    for ended in (
        Ended("error", "", log, seconds=32_380, limit_seconds=32_400),
        Ended("cancelled", "Your notebook was stopped because it exceeded the max allowed execution duration.", log),
    ):
        found = diagnose(ended)
        assert found.kind == "time" and found.again and "--session-limit" in found.remedy
    cancelled = diagnose(Ended("cancelled", "", log, seconds=60, limit_seconds=32_400))
    assert cancelled.kind == "cancelled" and not cancelled.again  # somebody wanted it


def test_what_was_overcome_long_before_the_end_is_not_the_cause():
    log = "CUDA out of memory: a smaller batch is tried\n" + "epoch\n" * 200 + KERNEL + "ImportError: no libGL.so.1\n"
    assert diagnose(Ended("error", "", log)).kind == "import"
    early = "OSError: No space left on device, tried again\n" + KERNEL + "ImportError: no libGL.so.1\n"
    assert diagnose(Ended("error", "", early)).kind == "import"


def test_the_excerpt_is_short_however_long_the_log():
    found = diagnose(Ended("error", "", "x" * 5000 + "\n" + "line\n" * 5000))
    assert len(found.excerpt) == 12 and max(map(len, found.excerpt)) <= 300
