// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IStakeRegistry} from "../src/interfaces/IStakeRegistry.sol";
import {StakesHandler} from "./handlers/StakesHandler.sol";
import {IOctoA, Shipped} from "./utils/Shipped.sol";

/// @title What holds after any sequence of calls by anyone
/// @dev Each was seen to fail: tests/contracts/test_mutants.py removes one line of the contracts at a time.
contract StakeRegistryInvariants is Shipped {
    IOctoA private octoA;
    IStakeRegistry private registry;
    StakesHandler private handler;

    function setUp() external {
        vm.warp(1_800_000_000);
        octoA = deployOctoA();
        registry = deployRegistry(octoA, "octo-test");
        handler = new StakesHandler(octoA, registry);
        octoA.transfer(address(handler), 1_000_000 ether);
        for (uint256 i = 0; i < 3; i++) {
            octoA.transfer(handler.staker(i), 1_000_000 ether);
        }
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function invariant_stakeIsConserved() external view {
        uint256 held;
        for (uint256 i = 0; i < 3; i++) {
            address staker = handler.staker(i);
            IStakeRegistry.Stake memory stake = registry.stakeOf(staker);
            uint256 mine = uint256(stake.bonded) + stake.unbonding;
            uint256 gone = handler.paidOut(staker) + handler.lost(staker);
            vm.assertEq(handler.paidIn(staker), mine + gone, "paid in = held + withdrawn + slashed");
            held += mine;
        }
        vm.assertEq(octoA.balanceOf(address(registry)), held + handler.gifts(), "the registry holds what it owes");
    }

    function invariant_whatIsLostIsBurnedOrTheReporters() external view {
        uint256 lost;
        for (uint256 i = 0; i < 3; i++) {
            lost += handler.lost(handler.staker(i));
        }
        uint256 burned = 10 ** 28 - octoA.totalSupply();
        vm.assertEq(lost, burned + octoA.balanceOf(handler.REPORTER()), "slashed = burned + rewards");
    }

    function invariant_eachSignerAnswersForOneStaker() external view {
        for (uint256 i = 0; i < 3; i++) {
            address staker = handler.staker(i);
            address signer = registry.identityOf(staker).receiptSigner;
            if (signer == address(0)) continue;
            IStakeRegistry.SignerRecord memory record = registry.signerRecord(signer);
            vm.assertEq(record.staker, staker);
            vm.assertEq(record.slashableUntil, 0, "a bound signer can be slashed");
        }
    }

    function invariant_activeMeansEnoughAtStake() external view {
        for (uint256 i = 0; i < 3; i++) {
            address staker = handler.staker(i);
            for (uint256 t = 1; t <= 3; t++) {
                if (!registry.isActive(staker, IStakeRegistry.Tier(t))) continue;
                uint256 minimum = registry.minimumOf(IStakeRegistry.Tier(t));
                vm.assertTrue(registry.stakeOf(staker).bonded >= minimum, "active: the tier's minimum is bonded");
                vm.assertTrue(registry.identityOf(staker).receiptSigner != address(0), "active: a signer is bound");
            }
        }
    }
}
