"""Where text comes from: files on disk or in an object store, cut into documents."""
