"""How bytes come in: one connection class for all transports, and what makes the transports.
Knows nothing of what a packet means.
"""
