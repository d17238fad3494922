"""SLO control: a window of finished requests and the policies that move the split. Pure: no I/O, no clock."""
