"""The steps of a run: what the command line calls and what a script may call.

::

    headers       inspect, plan           read headers only; no torch for known families
    write         merge, push             write a checkpoint, upload it
    import_donor  import                  make a source of a released donor
    align         align                   train the stages of a recipe
    search/       search                  search weights and parameters of a recipe
    check         diff, verify            compare checkpoints
    measure       eval, generate          run a checkpoint
    lab/          lab make, lab report    make small families of checkpoints and measure compositions on them

Each function is one command: it calls the rooms below and returns a report that can be printed as text or as JSON
(``reports``, ``record``). Import the modules one by one, so that ``plan`` does not load what ``generate`` needs.
"""
