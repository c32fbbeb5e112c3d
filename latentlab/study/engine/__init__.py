"""Running cells: the schedule, processes of this machine or of a cluster, progress."""
