SELECT key, name, tag FROM segment WHERE state = 'whole'
