from tests.support.work_clock import work_clock

__all__ = ["work_clock"]
