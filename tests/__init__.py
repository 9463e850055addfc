"""The tests of streammerge: properties held against independent references."""
