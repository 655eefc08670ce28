"""The post office: files that other tools open."""
