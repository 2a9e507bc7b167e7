"""The iptables back-ends: rules through iptables (legacy or nft variant), endpoints and pools as members of IP sets.

``LegacyFilter`` writes rules with python-iptables, ``NftVariantFilter`` with ``iptables-nft-restore``; both read them
with the variant's ``-save`` tool and write set members by netlink, without a process. Must never touch a table
outside ``felixpy.calc.rule.Table`` but to remove chains of ours from it.
"""

from felixpy.dataplane.iptables.legacy import LegacyFilter
from felixpy.dataplane.iptables.nft_variant import NftVariantFilter

__all__ = ["LegacyFilter", "NftVariantFilter"]
