SELECT segments, native, lines, events, duplicates, rejected, untrusted_lines FROM applied_sum
