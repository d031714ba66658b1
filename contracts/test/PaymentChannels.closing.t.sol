// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/interfaces/IPaymentChannels.sol";
import {ChannelMarket} from "./utils/ChannelMarket.sol";

/// @title The end of a channel: who may close it, when, and that the payer gets the rest
contract PaymentChannelsClosingTest is ChannelMarket {
    function test_payeeClosesAtOnceAndThePayerGetsTheRest() external {
        openChannel(1, DEPOSIT);
        redeemAs(PAYEE, voucher(1, 30 ether));
        vm.expectEmit(address(channels));
        emit IPaymentChannels.Closed(idOf(1), 30 ether, 70 ether);
        vm.assertEq(closeAs(PAYEE, 1), 70 ether);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether - 30 ether);
        vm.assertEq(octo.balanceOf(address(channels)), 0);
    }

    function test_payerWaitsForTheChallengePeriod() external {
        openChannel(1, DEPOSIT);
        refuse(IPaymentChannels.TooEarly.selector, 1, 0);
        this.closeByPayer(1);
        uint64 closesAt = uint64(vm.getBlockTimestamp()) + PERIOD;
        vm.expectEmit(address(channels));
        emit IPaymentChannels.CloseRequested(idOf(1), PAYEE, closesAt);
        requestClose(1);
        vm.warp(closesAt - 1);
        refuse(IPaymentChannels.TooEarly.selector, 1, closesAt);
        this.closeByPayer(1);
        vm.warp(closesAt);
        vm.assertEq(closeAs(STRANGER, 1), DEPOSIT);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether);
    }

    /// @dev External, so that an expected revert is this whole call and not the views before it.
    function closeByPayer(uint256 salt) external {
        closeAs(payer, salt);
    }

    function test_payeeRedeemsDuringTheChallengePeriodAndAfterIt() external {
        openChannel(1, DEPOSIT);
        requestClose(1);
        redeemAs(PAYEE, voucher(1, 40 ether));
        vm.warp(vm.getBlockTimestamp() + 10 * PERIOD);
        redeemAs(PAYEE, voucher(1, 50 ether));
        vm.assertEq(closeAs(payer, 1), 50 ether);
        vm.assertEq(octo.balanceOf(PAYEE), 50 ether);
    }

    function test_secondRequestDoesNotMoveTheTime() external {
        openChannel(1, DEPOSIT);
        requestClose(1);
        uint64 closesAt = uint64(vm.getBlockTimestamp()) + PERIOD;
        vm.warp(vm.getBlockTimestamp() + 1 hours);
        address sessionKey = vm.addr(SESSION);
        refuse(IPaymentChannels.Closing.selector, 1, closesAt);
        vm.prank(payer);
        channels.requestClose(PAYEE, sessionKey, bytes32(uint256(1)));
    }

    function test_onlyThePayerRequestsClose() external {
        openChannel(1, DEPOSIT);
        address sessionKey = vm.addr(SESSION);
        bytes32 other = channels.channelIdOf(IPaymentChannels.Terms(STRANGER, PAYEE, sessionKey, bytes32(uint256(1))));
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.NotOpen.selector, other));
        vm.prank(STRANGER);
        channels.requestClose(PAYEE, sessionKey, bytes32(uint256(1)));
    }

    function test_closedIsForEver() external {
        openChannel(1, DEPOSIT);
        redeemAs(PAYEE, voucher(1, 30 ether));
        closeAs(PAYEE, 1);
        IPaymentChannels.Channel memory held = state(1);
        vm.assertEq(held.deposit, 30 ether);
        vm.assertEq(held.closesAt, type(uint64).max);

        IPaymentChannels.Voucher memory v = voucher(1, 31 ether);
        IPaymentChannels.Terms memory terms = termsOf(1);
        bytes32 id = idOf(1);
        vm.warp(vm.getBlockTimestamp() + 1000 days);
        refuse(IPaymentChannels.Overdrawn.selector, 1, 31 ether, 30 ether);
        channels.redeem(PAYEE, v);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        channels.topUp(id, 1);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        channels.close(terms);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(PAYEE);
        channels.close(terms);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(payer);
        channels.requestClose(PAYEE, terms.sessionKey, terms.salt);
    }

    function test_payeeCannotCloseWhatWasNeverOpened() external {
        IPaymentChannels.Terms memory terms = termsOf(1);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(PAYEE);
        channels.close(terms);
        openChannel(1, DEPOSIT); // and so cannot spoil an opening
    }

    /// @dev The attack that was demonstrated on the sketch: let the challenge period run out on an empty channel, fund
    /// it, buy with vouchers, and close at once, before the seller can redeem.
    function test_armThenFundFails() external {
        address sessionKey = vm.addr(SESSION);
        bytes32 salt = bytes32(uint256(1));
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(payer);
        channels.requestClose(PAYEE, sessionKey, salt);

        // With a deposit of one unit the clock does start, but then no deposit comes in any more ...
        openChannel(1, 1);
        requestClose(1);
        uint64 closesAt = state(1).closesAt;
        vm.warp(closesAt + 1);
        bytes32 id = idOf(1);
        refuse(IPaymentChannels.Closing.selector, 1, closesAt);
        vm.prank(payer);
        channels.topUp(id, DEPOSIT);
        refuse(IPaymentChannels.AlreadyOpened.selector, 1);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, salt, DEPOSIT);

        // ... and once it is closed, never again.
        closeAs(payer, 1);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(payer);
        channels.topUp(id, DEPOSIT);
        refuse(IPaymentChannels.AlreadyOpened.selector, 1);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, salt, DEPOSIT);
    }

    function testFuzz_payerAlwaysGetsTheRest(uint96 deposit, uint96 extra, uint96 owed, bool byPayee) external {
        uint256 held = bound(deposit, 1, 400_000 ether);
        uint256 more = bound(extra, 1, 400_000 ether);
        openChannel(1, held);
        topUpAs(payer, 1, more);
        uint256 spent = bound(owed, 0, held + more);
        if (spent != 0) redeemAs(PAYEE, voucher(1, spent));
        if (!byPayee) {
            requestClose(1);
            vm.warp(vm.getBlockTimestamp() + PERIOD);
        }
        closeAs(byPayee ? PAYEE : payer, 1);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether - spent);
        vm.assertEq(octo.balanceOf(PAYEE), spent);
        vm.assertEq(octo.balanceOf(address(channels)), 0);
    }
}
