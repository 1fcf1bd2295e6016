SELECT key, name FROM segment WHERE state = 'whole'
