// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IStakeRegistry} from "../src/interfaces/IStakeRegistry.sol";
import {StakeMarket} from "./utils/StakeMarket.sol";

/// @title Two receipts that contradict each other cost half the stake, and nothing else does
contract StakeRegistrySlashingTest is StakeMarket {
    function test_equivocationCostsHalfTheReporterGetsATenthTheRestBurns() external {
        provide(1_000 ether);
        uint256 supply = octoA.totalSupply();
        bytes32 fault =
            keccak256(abi.encode(vm.addr(SIGNER), keccak256("channel"), keccak256(abi.encode("task", 1)), uint64(1)));
        vm.expectEmit(address(registry));
        emit IStakeRegistry.Slashed(PROVIDER, STRANGER, fault, 500 ether, 50 ether);
        vm.assertEq(slashAs(STRANGER, SIGNER, 1), 50 ether);
        vm.assertEq(octoA.balanceOf(STRANGER), 50 ether);
        vm.assertEq(octoA.totalSupply(), supply - 450 ether);
        vm.assertEq(held().bonded, 500 ether);
        vm.assertFalse(registry.isActive(PROVIDER, CONSUMER));
        vm.assertTrue(registry.isSlashed(fault));
        vm.prank(PROVIDER);
        registry.topUp(500 ether); // and it may work itself up again
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
    }

    function test_reportingOneselfDoesNotPay() external {
        provide(1_000 ether);
        slashAs(PROVIDER, SIGNER, 1);
        vm.assertEq(octoA.balanceOf(PROVIDER), 99_000 ether + 50 ether);
        vm.assertTrue(registry.REPORTER_BPS() < 10_000);
    }

    function test_whatUnbondsIsSlashedToo() external {
        provide(3_000 ether);
        unstakeAs(PROVIDER, 2_000 ether);
        slashAs(STRANGER, SIGNER, 1); // half of 3,000: all of the 1,000 bonded, 500 of what unbonds
        vm.assertEq(held().bonded, 0);
        vm.assertEq(held().unbonding, 1_500 ether);
        later(7 days);
        vm.prank(PROVIDER);
        vm.assertEq(registry.withdraw(), 1_500 ether);
    }

    function test_faultCountsOnceAnotherFaultAgain() external {
        provide(1_000 ether);
        slashAs(STRANGER, SIGNER, 1);
        (IStakeRegistry.Receipt memory one, IStakeRegistry.Receipt memory third) =
            (receipt(1, 1, "one"), receipt(1, 1, "third"));
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory byThird = signed(SIGNER, third);
        bytes32 fault = keccak256(abi.encode(vm.addr(SIGNER), one.channel, one.task, one.seq));
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.AlreadySlashed.selector, fault));
        registry.slashEquivocation(third, byThird, one, byOne);
        slashAs(STRANGER, SIGNER, 2);
        vm.assertEq(held().bonded, 250 ether);
    }

    function test_anyFieldOfTheReceiptMakesAContradiction() external {
        provide(1_000 ether);
        for (uint64 seq = 1; seq <= 7; seq++) {
            IStakeRegistry.Receipt memory one = receipt(1, seq, "one");
            IStakeRegistry.Receipt memory other = receipt(1, seq, seq == 1 ? bytes32("other") : bytes32("one"));
            if (seq == 2) other.isFinal = true;
            if (seq == 3) other.tokensIn += 1;
            if (seq == 4) other.tokensOut += 1;
            if (seq == 5) other.amount += 1;
            if (seq == 6) other.transcriptRoot = "other";
            if (seq == 7) other.quote = "other";
            uint256 before = held().bonded;
            registry.slashEquivocation(one, signed(SIGNER, one), other, signed(SIGNER, other));
            vm.assertEq(held().bonded, before - before / 2);
        }
    }

    function test_sameReceiptTwiceIsNoEquivocation() external {
        provide(1_000 ether);
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        vm.expectRevert(IStakeRegistry.NotEquivocation.selector);
        registry.slashEquivocation(one, byOne, one, byOne);
    }

    function test_receiptsOfDifferentStepsAreNoEquivocation() external {
        provide(1_000 ether);
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        for (uint256 what = 0; what < 3; what++) {
            IStakeRegistry.Receipt memory other = receipt(1, 1, "other");
            if (what == 0) other.seq = 2;
            if (what == 1) other.task = keccak256("another task");
            if (what == 2) other.channel = keccak256("another channel");
            IStakeRegistry.Signature memory byOther = signed(SIGNER, other);
            vm.expectRevert(IStakeRegistry.NotEquivocation.selector);
            registry.slashEquivocation(one, byOne, other, byOther);
        }
    }

    function test_bothReceiptsMustBeByOneBoundSigner() external {
        provide(1_000 ether);
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Receipt memory other = receipt(1, 1, "other");
        (address signer, address second) = (vm.addr(SIGNER), vm.addr(OTHER_SIGNER));
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory forged = signed(OTHER_SIGNER, other);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.DifferentSigners.selector, signer, second));
        registry.slashEquivocation(one, byOne, other, forged);

        byOne = signed(OTHER_SIGNER, one);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotSlashable.selector, second));
        registry.slashEquivocation(one, byOne, other, forged);

        // Two signatures that are none recover the zero address, which nobody is.
        IStakeRegistry.Signature memory none;
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotSlashable.selector, address(0)));
        registry.slashEquivocation(one, none, other, none);
    }

    function test_receiptsOfAnotherNetworkOrChainDoNotCount() external {
        provide(1_000 ether);
        IStakeRegistry foreign = deployRegistry(octoA, "octo-main");
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Receipt memory other = receipt(1, 1, "other");
        (bytes32 r, bytes32 vs) = compact(SIGNER, foreign.receiptDigest(one));
        (bytes32 r2, bytes32 vs2) = compact(SIGNER, foreign.receiptDigest(other));
        refuseForeign(one, IStakeRegistry.Signature(r, vs), other, IStakeRegistry.Signature(r2, vs2));

        uint256 home = vm.getChainId();
        vm.chainId(0); // the local ledger's
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory byOther = signed(SIGNER, other);
        vm.chainId(home);
        refuseForeign(one, byOne, other, byOther);
    }

    function refuseForeign(
        IStakeRegistry.Receipt memory one,
        IStakeRegistry.Signature memory byOne,
        IStakeRegistry.Receipt memory other,
        IStakeRegistry.Signature memory byOther
    ) private {
        try registry.slashEquivocation(one, byOne, other, byOther) {
            vm.assertTrue(false, "slashed by receipts of elsewhere");
        } catch (bytes memory why) {
            vm.assertTrue(bytes4(why) == IStakeRegistry.DifferentSigners.selector);
        }
        vm.assertEq(held().bonded, 1_000 ether);
    }

    function test_rotatedSignerStaysSlashableForAnUnbondingPeriod() external {
        provide(1_000 ether);
        bindAs(PROVIDER, OTHER_SIGNER, PEER);
        later(7 days - 1);
        slashAs(STRANGER, SIGNER, 1);
        vm.assertEq(held().bonded, 500 ether);
        later(1);
        IStakeRegistry.Receipt memory one = receipt(2, 1, "one");
        IStakeRegistry.Receipt memory other = receipt(2, 1, "other");
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory byOther = signed(SIGNER, other);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotSlashable.selector, vm.addr(SIGNER)));
        registry.slashEquivocation(one, byOne, other, byOther);
        slashAs(STRANGER, OTHER_SIGNER, 3);
    }

    function test_slashingAnEmptyStakeIsRefused() external {
        bindAs(PROVIDER, SIGNER, PEER);
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Receipt memory other = receipt(1, 1, "other");
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory byOther = signed(SIGNER, other);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NothingToSlash.selector, PROVIDER));
        registry.slashEquivocation(one, byOne, other, byOther);
        // The fault is not used up by the attempt.
        stakeAs(PROVIDER, CONSUMER, 1_000 ether);
        registry.slashEquivocation(one, byOne, other, byOther);
        vm.assertEq(held().bonded, 500 ether);
    }

    function test_oneStakersFaultLeavesTheOthersAlone() external {
        provide(1_000 ether);
        fund(OTHER, 5_000 ether);
        stakeAs(OTHER, PROSUMER, 5_000 ether);
        bindAs(OTHER, OTHER_SIGNER, PEER);
        slashAs(STRANGER, SIGNER, 1);
        vm.assertEq(registry.stakeOf(OTHER).bonded, 5_000 ether);
        vm.assertTrue(registry.isActive(OTHER, PROSUMER));
    }

    function testFuzz_slashIsHalfOfAllThereIs(uint96 bonded, uint96 leaving) external {
        uint256 amount = bound(bonded, 1_000 ether, 100_000 ether);
        uint256 unbonding = bound(leaving, 0, amount - 1_000 ether);
        provide(amount);
        if (unbonding != 0) unstakeAs(PROVIDER, unbonding);
        uint256 supply = octoA.totalSupply();
        uint256 reward = slashAs(STRANGER, SIGNER, 1);
        uint256 lost = amount / 2;
        vm.assertEq(uint256(held().bonded) + held().unbonding, amount - lost);
        vm.assertEq(reward, lost / 10);
        vm.assertEq(octoA.balanceOf(STRANGER), reward);
        vm.assertEq(octoA.totalSupply(), supply - (lost - reward));
        vm.assertEq(octoA.balanceOf(address(registry)), amount - lost);
    }
}
