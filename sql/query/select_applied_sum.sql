SELECT segments, native, lines, events, duplicates, rejected, corrupt_lines FROM applied_sum
