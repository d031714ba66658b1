// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IStakeRegistry} from "../../src/interfaces/IStakeRegistry.sol";
import {Market} from "./Market.sol";

/// @title The base of the tests of StakeRegistry: a provider that stakes and binds, and the time that passes
abstract contract StakeMarket is Market {
    IStakeRegistry.Tier internal constant CONSUMER = IStakeRegistry.Tier.Consumer;
    IStakeRegistry.Tier internal constant PROSUMER = IStakeRegistry.Tier.Prosumer;
    IStakeRegistry.Tier internal constant ENTERPRISE = IStakeRegistry.Tier.Enterprise;
    address internal constant OTHER = 0x71bE63f3384f5fb98995898A86B02Fb2426c5788;

    function provide(uint256 amount) internal {
        stakeAs(PROVIDER, CONSUMER, amount);
        bindAs(PROVIDER, SIGNER, PEER);
    }

    function fund(address who, uint256 amount) internal {
        octoA.transfer(who, amount);
        vm.prank(who);
        octoA.approve(address(registry), amount);
    }

    function unstakeAs(address who, uint256 amount) internal {
        vm.prank(who);
        registry.unstake(amount);
    }

    function held() internal view returns (IStakeRegistry.Stake memory) {
        return registry.stakeOf(PROVIDER);
    }

    function later(uint256 seconds_) internal {
        vm.warp(vm.getBlockTimestamp() + seconds_);
    }
}
