"""What people would pick instead, on the same machine, with the same texts and vectors.

make bench-peers [SIZE=100000]
"""
