"""The engine beside other CPU servers (``make bench-cpu``): one run, turn by turn, losses printed.

`environments` installs the peers, `servers` starts them, `parts` says what is asked of them and what the answers mean,
`schedule` who is asked when, `compare` what came out. `probes` looks into processes of ours where HTTP shows nothing.
"""
