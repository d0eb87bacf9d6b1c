"""Why a run failed: everything its nodes know on one axis of time, the earliest fault named, known codes explained."""
