"""Reports: records in, tables and pages out, one file a format."""
