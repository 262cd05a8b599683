"""What the tests share: tiny models, references that share no code with the package, tolerances.

`families` and `further_families` list configurations, `zoo` makes models of them. `brute_force`, `brute_experts`,
`rows` and `baevski18_reference` compute a second time, from first principles, what the package computes; `comparison`
says how close the two must be. `placed` pretends devices and `package_index` an index of packages, `facts` draws
prompts and targets, `spoken` gives models words of their own, `readme_blocks` runs a page's Python, `browser` opens
pages with no way out, `served` and `lab` serve them, `command` runs the command, `deprecations` hears what the host
deprecates, `surroundings` keeps all of it off the network. No test file imports another: what two need is here.
"""
