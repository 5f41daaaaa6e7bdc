"""The steps of a run: what the command line calls and what a script may call.

::

    headers   inspect, plan             headers only, no torch for known families
    write     merge, push               what writes
    import_donor  import                what makes a source of a released donor
    check     diff, verify              what compares
    measure   evaluate, generate        what runs a checkpoint
    laboratory  lab make, lab report    what trains and measures small families

Each function is one command: it calls the rooms below and returns a report that prints itself as text or as JSON. The
modules are imported one by one, so that ``plan`` does not wait for what ``generate`` needs.
"""
