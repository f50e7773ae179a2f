"""The comparison study: what is around the measuring. Store, tables, plots, report."""
