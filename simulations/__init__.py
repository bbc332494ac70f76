"""Running it: data, partitions, engines, results, report and the command line."""
