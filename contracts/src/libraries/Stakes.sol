// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IStakeRegistry} from "../interfaces/IStakeRegistry.sol";

/// @title The rules of one stake's slot: how it grows, unbonds and is cut
/// @dev Knows amounts, tiers and times; tokens and keys are the contract's business.
library Stakes {
    /// @dev Reverts for `None`, which takes no stake and gives no right.
    function minimumOf(IStakeRegistry.Tier tier) internal pure returns (uint256) {
        if (tier == IStakeRegistry.Tier.Consumer) return 1_000 ether;
        if (tier == IStakeRegistry.Tier.Prosumer) return 5_000 ether;
        if (tier == IStakeRegistry.Tier.Enterprise) return 10_000 ether;
        revert IStakeRegistry.NoTier();
    }

    function reaches(IStakeRegistry.Stake memory self, IStakeRegistry.Tier tier) internal pure returns (bool) {
        return tier != IStakeRegistry.Tier.None && self.tier >= tier && self.bonded >= minimumOf(self.tier);
    }

    function add(IStakeRegistry.Stake storage self, uint256 amount) internal returns (uint256 bonded) {
        if (amount == 0) revert IStakeRegistry.ZeroAmount();
        if (amount > type(uint96).max) revert IStakeRegistry.AmountTooLarge(amount);
        bonded = self.bonded + amount;
        // Both parts together fit as well, so that what unbonds can grow by all that is bonded.
        if (bonded + self.unbonding > type(uint96).max) revert IStakeRegistry.AmountTooLarge(amount);
        self.bonded = uint96(bonded);
    }

    function setTier(IStakeRegistry.Stake storage self, IStakeRegistry.Tier tier)
        internal
        returns (IStakeRegistry.Tier before)
    {
        _requireMinimum(tier, self.bonded);
        before = self.tier;
        self.tier = tier;
    }

    function unbond(IStakeRegistry.Stake storage self, uint256 amount, uint48 releaseAt)
        internal
        returns (uint256 unbonding)
    {
        IStakeRegistry.Stake memory held = self;
        if (amount == 0) revert IStakeRegistry.ZeroAmount();
        if (amount > held.bonded) revert IStakeRegistry.NotStaked(held.bonded);
        held.bonded -= uint96(amount);
        if (held.bonded == 0) held.tier = IStakeRegistry.Tier.None;
        else _requireMinimum(held.tier, held.bonded);
        held.unbonding += uint96(amount);
        held.releaseAt = releaseAt;
        _write(self, held);
        return held.unbonding;
    }

    function release(IStakeRegistry.Stake storage self) internal returns (uint256 amount) {
        IStakeRegistry.Stake memory held = self;
        if (held.releaseAt == 0 || block.timestamp < held.releaseAt) revert IStakeRegistry.TooEarly(held.releaseAt);
        amount = held.unbonding;
        held.unbonding = 0;
        held.releaseAt = 0;
        _write(self, held);
    }

    /// @dev Takes `bps` of all that is there, from the bonded part first: a cheat loses its tier at once.
    function cut(IStakeRegistry.Stake storage self, uint256 bps) internal returns (uint256 amount) {
        IStakeRegistry.Stake memory held = self;
        amount = (uint256(held.bonded) + held.unbonding) * bps / 10_000;
        uint256 fromBonded = amount < held.bonded ? amount : held.bonded;
        held.bonded -= uint96(fromBonded);
        held.unbonding -= uint96(amount - fromBonded);
        _write(self, held);
    }

    function _requireMinimum(IStakeRegistry.Tier tier, uint256 bonded) private pure {
        uint256 minimum = minimumOf(tier);
        if (bonded < minimum) revert IStakeRegistry.BelowTier(tier, minimum, bonded);
    }

    function _write(IStakeRegistry.Stake storage self, IStakeRegistry.Stake memory held) private {
        self.bonded = held.bonded;
        self.unbonding = held.unbonding;
        self.releaseAt = held.releaseAt;
        self.tier = held.tier;
    }
}
