"""SemiPDService operator: watches custom resources, renders and applies their objects, writes their status."""
